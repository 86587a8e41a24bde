"""m3rt serve: all three heads from one pass, over HTTP and gRPC. See docs/serve.md.

settings    what can be set, and where each value came from
work        what a surface asks for, and what it gets
faults      why a request is not answered with its result
service     the one thing that every surface calls
http        surfaces over HTTP, a file each, and what they share
"""
