"""Run configs, dataset configs and the schema that reads them."""
