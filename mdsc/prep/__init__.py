"""From AnnData, embedded or simulated cells to a folder of shards."""
