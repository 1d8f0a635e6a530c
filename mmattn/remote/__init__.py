"""Training on a rented machine: deploy, watch, fetch, tear down."""
