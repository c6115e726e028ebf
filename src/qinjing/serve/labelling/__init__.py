"""MONAI Label's protocol over the service's own images and projects (`routes` puts it together)."""
