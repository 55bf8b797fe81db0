"""The embedded models: small transformers, trained by this package, that show the methods without a download."""
