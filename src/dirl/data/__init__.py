"""From files to batches: reading, chat template, packing, the two DataModules."""
