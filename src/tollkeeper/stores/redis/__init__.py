"""The shared store: a local journal takes each entry, Redis is the view of all of them. `store` is where the parts meet."""
