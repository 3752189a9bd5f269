"""Parts of ci/bench."""
