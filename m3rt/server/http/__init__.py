"""HTTP: what surfaces share (exchange, routes, replies, openapi), and the surfaces, a file each."""
