"""Sources on the network. They block, in threads; a scheme's module is imported when used."""
