"""The messages of onnx.proto as a table: what `wire` needs to know to read and write them.

One line a field: its number, its name, its type; `*` marks a repeated one. The types:

    int64 int32 float   numbers (enumerations are int32)
    string              UTF-8 that must be right: names are compared
    text                UTF-8 for people: wrong bytes are replaced
    bytes               a copy of the bytes
    view                the bytes where they lie, a memoryview (weights)
    packed              numbers where they lie, undecoded: a list of memoryviews (see `wire.numbers`)
    skip                known, and of no use here: not even looked at
    SomeProto           a message of this table

A message marked `shared` comes again and again, byte for byte, and is decoded once.

Source: onnx.proto of ONNX 1.23 (IR version 14); numbers never change their meaning in later versions.
"""

from __future__ import annotations

from minifer.onnx_io.wire import Message, message_types

_TABLE = """
ModelProto
    1 ir_version int64
    2 producer_name text
    3 producer_version text
    4 domain text
    5 model_version int64
    6 doc_string text
    7 graph GraphProto
    8 opset_import OperatorSetIdProto*
    14 metadata_props StringStringEntryProto*
    20 training_info skip
    25 functions FunctionProto*
    26 configuration skip

OperatorSetIdProto
    1 domain string
    2 version int64

StringStringEntryProto
    1 key text
    2 value text

GraphProto
    1 node NodeProto*
    2 name text
    5 initializer TensorProto*
    10 doc_string skip
    11 input ValueInfoProto*
    12 output ValueInfoProto*
    13 value_info ValueInfoProto*
    14 quantization_annotation skip
    15 sparse_initializer SparseTensorProto*
    16 metadata_props skip

NodeProto
    1 input string*
    2 output string*
    3 name text
    4 op_type string
    5 attribute AttributeProto*
    6 doc_string skip
    7 domain string
    8 overload string
    9 metadata_props skip
    10 device_configurations skip

AttributeProto shared
    1 name string
    2 f float
    3 i int64
    4 s bytes
    5 t TensorProto
    6 g GraphProto
    7 floats float*
    8 ints int64*
    9 strings bytes*
    10 tensors TensorProto*
    11 graphs GraphProto*
    13 doc_string skip
    14 tp TypeProto
    15 type_protos TypeProto*
    20 type int32
    21 ref_attr_name string
    22 sparse_tensor SparseTensorProto
    23 sparse_tensors SparseTensorProto*

TensorProto
    1 dims int64*
    2 data_type int32
    3 segment view
    4 float_data packed float
    5 int32_data packed varint
    6 string_data bytes*
    7 int64_data packed varint
    8 name string
    9 raw_data view
    10 double_data packed double
    11 uint64_data packed varint
    12 doc_string skip
    13 external_data StringStringEntryProto*
    14 data_location int32
    16 metadata_props skip

SparseTensorProto
    1 values TensorProto
    2 indices TensorProto
    3 dims int64*

ValueInfoProto
    1 name string
    2 type TypeProto
    3 doc_string skip
    4 metadata_props skip

TypeProto shared
    1 tensor_type TypeProto.Tensor
    4 sequence_type TypeProto.Sequence
    5 map_type TypeProto.Map
    6 denotation skip
    7 opaque_type TypeProto.Opaque
    8 sparse_tensor_type TypeProto.Tensor
    9 optional_type TypeProto.Sequence

TypeProto.Tensor
    1 elem_type int32
    2 shape TensorShapeProto

TypeProto.Sequence
    1 elem_type TypeProto

TypeProto.Map
    1 key_type int32
    2 value_type TypeProto

TypeProto.Opaque
    1 domain text
    2 name text

TensorShapeProto
    1 dim TensorShapeProto.Dimension*

TensorShapeProto.Dimension
    1 dim_value int64
    2 dim_param string
    3 denotation skip

FunctionProto
    1 name string
    4 input string*
    5 output string*
    6 attribute string*
    7 node NodeProto*
    8 doc_string skip
    9 opset_import OperatorSetIdProto*
    10 domain string
    11 attribute_proto AttributeProto*
    12 value_info skip
    13 overload string
    14 metadata_props skip
"""

#: message name -> its class
MESSAGES: dict[str, type[Message]] = message_types(_TABLE)
