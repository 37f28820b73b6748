"""Images: manifests, the content-addressed store with its packs, the builders of templates, and customisation."""
