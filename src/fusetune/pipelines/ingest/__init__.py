"""Raw data to manifests."""
