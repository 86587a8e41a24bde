"""gRPC, beside HTTP in one event loop: text-embeddings-inference's services and the OIP's.

server    starts and stops it
calls     what all methods share: whose call it is, refusals, streams
messages  the messages, made from protos/
tei       tei.v1
oip       inference.GRPCInferenceService
health    grpc.health.v1

After a change of protos/, in this directory:

    python -m grpc_tools.protoc -I protos --descriptor_set_out=protos.binpb protos/*.proto
"""
