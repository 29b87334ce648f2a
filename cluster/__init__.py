"""Where the product runs: settings, launch, composition, command line."""
