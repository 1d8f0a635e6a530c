"""Stand-ins for AWS that behave: an EC2 API over HTTP, and Linux machines that boot for it."""
