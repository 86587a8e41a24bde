"""What stands in for the rectangular parts of the graph when tokens are packed.

Functions in ONNX's own textual syntax, inlined by export.packing. n texts, t tokens, r rows that
the last layer computes; starts (n + 1,) says where each text begins. A graph may have more tokens
than ``starts`` ends at: they belong to no text, and an engine adds them to run fewer shapes.
"""

from __future__ import annotations

import onnx.parser
import onnx_ir as ir

OWNER = """
Owner (size, starts) => (begin, owner) {
    # begin (n,): first row of each text; owner (size,): the text of each row
    zero = Constant <value_ints: ints = [0]> ()
    minus_one = Constant <value_ints: ints = [-1]> ()
    first = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    begin = Slice (starts, zero, minus_one, zero)
    places = Range (first, size, one)
    column = Unsqueeze (begin, minus_one)
    begun = LessOrEqual (column, places)
    begun_int = Cast <to: int = 7> (begun)
    count = ReduceSum <keepdims: int = 0> (begun_int, zero)
    owner = Sub (count, one)
}
"""

POSITIONS_FROM_PAD = """
PositionsFromPad <pad_id: int, last: int> (ids, begin, owner) => (positions) {
    # as RoBERTa counts: the padding id takes no position, even as part of a text
    axis = Constant <value_int: int = 0> ()
    pad = Constant <value_int: int = @pad_id> ()
    is_pad = Equal (ids, pad)
    is_real = Not (is_pad)
    real = Cast <to: int = 7> (is_real)
    count = CumSum (real, axis)
    exclusive = Sub (count, real)
    before_text = Gather (exclusive, begin)
    before_token = Gather (before_text, owner)
    within = Sub (count, before_token)
    real_within = Mul (within, real)
    positions = Add (real_within, pad)
}
"""

POSITIONS_FROM_ZERO = """
PositionsFromZero <pad_id: int, last: int> (ids, begin, owner) => (positions) {
    first = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    last = Constant <value_int: int = @last> ()
    size = Size (ids)
    places = Range (first, size, one)
    begin_of_token = Gather (begin, owner)
    within = Sub (places, begin_of_token)
    positions = Min (within, last)
}
"""

# Where only CLS tokens are asked for, the last layer need not compute the others.
ROWS = """
Rows (size, starts, places, place_starts, every) => (rows, row_starts, chosen) {
    # rows (r,): all tokens if every is 1, those at places (p,) if it is 0; row_starts (n + 1,):
    # where each text's begin; chosen (p,): which of the rows are those at places
    zero = Constant <value_ints: ints = [0]> ()
    first = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    no = Sub (one, every)
    tokens = Mul (size, every)
    all_tokens = Range (first, tokens, one)
    count = Size (places)
    some = Mul (count, no)
    some_count = Unsqueeze (some, zero)
    some_tokens = Slice (places, zero, some_count, zero)
    rows = Concat <axis: int = 0> (all_tokens, some_tokens)
    every_bool = Cast <to: int = 9> (every)
    row_starts = Where (every_bool, starts, place_starts)
    numbers = Range (first, count, one)
    chosen = Where (every_bool, places, numbers)
}
"""

# As m3rt.mcls.places.
CLS_COUNTS = """
ClsCounts <step: int> (starts, begin) => (total, place_starts) {
    # total: CLS tokens in all; place_starts (n + 1,): where each text's begin among them
    axis = Constant <value_int: int = 0> ()
    nothing = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    last_two = Constant <value_int: int = 3> ()
    zero = Constant <value_ints: ints = [0]> ()
    second = Constant <value_ints: ints = [1]> ()
    far = Constant <value_ints: ints = [9223372036854775807]> ()
    step = Constant <value_int: int = @step> ()
    end = Slice (starts, second, far, zero)
    lengths = Sub (end, begin)
    after = Sub (lengths, last_two)
    room = Max (after, nothing)
    more = Div (room, step)
    counts = Add (more, one)
    sums = CumSum (counts, axis)
    place_starts = Concat <axis: int = 0> (zero, sums)
    total = ReduceSum <keepdims: int = 0> (counts, zero)
}
"""

CLS_PLACES = """
ClsPlaces <step: int> (total, begin, place_begin, place_owner) => (places) {
    # places (total,): every step-th token of each text
    first = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    step = Constant <value_int: int = @step> ()
    numbers = Range (first, total, one)
    begun = Gather (place_begin, place_owner)
    within = Sub (numbers, begun)
    tokens = Mul (within, step)
    text = Gather (begin, place_owner)
    places = Add (text, tokens)
}
"""

# For ONNX Runtime: without a mask it takes its flash kernel, and no text sees another.
ATTENTION_LOOP = """
Attention <heads: int, scale: float, hidden: ints> (query, key, value, row_starts, starts)
    => (mixed) {
    # text by text: queries (r, h), keys and values (t, h) to (r, h)
    zero = Constant <value_ints: ints = [0]> ()
    one = Constant <value_ints: ints = [1]> ()
    always = Constant <value: tensor = bool {1}> ()
    none = SequenceEmpty <dtype: int = 1> ()
    n_starts = Size (starts)
    scalar_one = Constant <value_int: int = 1> ()
    texts = Sub (n_starts, scalar_one)
    rows = Loop (texts, always, none) <body = text
        (int64 i, bool go, seq(float) done) => (bool go_on, seq(float) more) {
        go_on = Identity (go)
        at = Unsqueeze (i, zero)
        after = Add (at, one)
        row_from = Gather (row_starts, at)
        row_to = Gather (row_starts, after)
        from = Gather (starts, at)
        to = Gather (starts, after)
        q = Slice (query, row_from, row_to, zero)
        k = Slice (key, from, to, zero)
        v = Slice (value, from, to, zero)
        q3 = Unsqueeze (q, zero)
        k3 = Unsqueeze (k, zero)
        v3 = Unsqueeze (v, zero)
        m3 = com.microsoft.MultiHeadAttention <num_heads: int = @heads, scale: float = @scale>
            (q3, k3, v3)
        m = Squeeze (m3, zero)
        more = SequenceInsert (done, m)
    }>
    mixed = ConcatFromSequence <axis: int = 0> (rows)
}
"""

# For OpenVINO: it fuses scaled dot-product attention over rectangles.
GRID = """
Grid (starts, begin, owner) => (grid, back, mask) {
    # grid (n, s): the rows of each text, its last one repeated; back: where each row stands in
    # the flattened grid; mask (n, 1, 1, s): 0 on rows of the text, very negative beyond
    zero = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    axis = Constant <value_ints: ints = [0]> ()
    second = Constant <value_ints: ints = [1]> ()
    minus_one = Constant <value_ints: ints = [-1]> ()
    middle = Constant <value_ints: ints = [1, 2]> ()
    far = Constant <value_ints: ints = [9223372036854775807]> ()
    end = Slice (starts, second, far, axis)
    lengths = Sub (end, begin)
    width = ReduceMax <keepdims: int = 0> (lengths, axis)
    steps = Range (zero, width, one)
    column = Unsqueeze (begin, minus_one)
    last = Sub (end, one)
    last_column = Unsqueeze (last, minus_one)
    places = Add (column, steps)
    grid = Min (places, last_column)
    beyond = Greater (places, last_column)
    beyond_float = Cast <to: int = 1> (beyond)
    masked = Constant <value_float: float = -10000.0> ()
    additive = Mul (beyond_float, masked)
    mask = Unsqueeze (additive, middle)
    size = Size (owner)
    rows = Range (zero, size, one)
    begin_of_row = Gather (begin, owner)
    within = Sub (rows, begin_of_row)
    owner_row = Mul (owner, width)
    exact = Add (owner_row, within)
    cells = Size (grid)
    last_cell = Sub (cells, one)
    back = Min (exact, last_cell)
}
"""

ATTENTION_GRID = """
Attention <heads: int, scale: float, hidden: ints>
    (query, key, value, row_grid, row_back, grid, mask) => (mixed) {
    # queries (r, h), keys and values (t, h) to (r, h), through rectangles of texts
    q = Gather (query, row_grid)
    k = Gather (key, grid)
    v = Gather (value, grid)
    m = Attention <q_num_heads: int = @heads, kv_num_heads: int = @heads, scale: float = @scale>
        (q, k, v, mask)
    flat = Constant <value_ints: ints = @hidden> ()
    cells = Reshape (m, flat)
    mixed = Gather (cells, row_back)
}
"""

# Text by text, so that the order of the additions is the text's own. ONNX Runtime has to know the
# shape of what a loop collects: unknown, it is taken for a number.
MEAN_LOOP = """
Mean <hidden: ints> (rows, starts, texts) => (pooled) {
    # the mean of the rows of each of the first texts: (r, h) to (texts, h)
    always = Constant <value: tensor = bool {1}> ()
    pooled = Loop (texts, always) <body = text (int64 i, bool go) => (bool go_on, float mean) {
        go_on = Identity (go)
        zero = Constant <value_ints: ints = [0]> ()
        one = Constant <value_ints: ints = [1]> ()
        at = Unsqueeze (i, zero)
        after = Add (at, one)
        from = Gather (starts, at)
        to = Gather (starts, after)
        own = Slice (rows, from, to, zero)
        own_mean = ReduceMean <keepdims: int = 0> (own, zero)
        width = Constant <value_ints: ints = @hidden> ()
        mean = Reshape (own_mean, width)
    }>
}
"""

MEAN_GRID = """
Mean <hidden: ints> (rows, starts, texts) => (pooled) {
    # the mean of the rows of each of the first texts: (r, h) to (texts, h)
    first = Constant <value_int: int = 0> ()
    one = Constant <value_int: int = 1> ()
    zero = Constant <value_ints: ints = [0]> ()
    axis = Constant <value_ints: ints = [1]> ()
    count = Unsqueeze (texts, zero)
    count_and_one = Add (count, axis)
    begin = Slice (starts, zero, count, zero)
    end = Slice (starts, axis, count_and_one, zero)
    shape = Shape <start: int = 0, end: int = 1> (rows)
    size = Squeeze (shape, zero)
    places = Range (first, size, one)
    begin_column = Unsqueeze (begin, axis)
    end_column = Unsqueeze (end, axis)
    begun = LessOrEqual (begin_column, places)
    open = Less (places, end_column)
    own = And (begun, open)
    member = Cast <to: int = 1> (own)
    total = MatMul (member, rows)
    length = ReduceSum <keepdims: int = 1> (member, axis)
    pooled = Div (total, length)
}
"""

COMMON = (OWNER, POSITIONS_FROM_PAD, POSITIONS_FROM_ZERO, ROWS, CLS_COUNTS, CLS_PLACES)


def parse(text: str, opset: int) -> ir.Function:
    """Return a function of domain ``m3rt`` over this version of ONNX's operators."""
    header = f'<domain: "m3rt", opset_import: ["": {opset}, "com.microsoft": 1]>'
    return ir.serde.deserialize_function(onnx.parser.parse_function(header + text))
