from tasks import *  # noqa: F403 -- `fab` looks for this name alone
