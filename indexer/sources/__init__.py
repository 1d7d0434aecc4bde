"""Where pictures come from: one file per kind of source, all behind one protocol."""
