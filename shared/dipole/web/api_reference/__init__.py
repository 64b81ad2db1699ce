"""The API reference that a browser shows at `/docs`: pages made of an app's own OpenAPI document."""
