"""TFRecord shards: finding them, their facts, and what may be wrong with them."""
