"""The pages that people look at: ES modules in static/, which read and act by REST alone; routes in pages.py."""
