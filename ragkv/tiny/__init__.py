"""The embedded models: small real transformers, trained here, that show what the methods do without a download."""
