"""What reports show, as blocks for `render`. Every text that comes from a file passes through `inert` here."""
