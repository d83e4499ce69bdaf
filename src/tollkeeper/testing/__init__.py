"""For tests and demonstrations of what runs on Tollkeeper: a fake provider, clocks moved by hand. Public."""
