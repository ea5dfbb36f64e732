"""What a run is made of: dataclasses, and one parser for YAML files and flags."""
