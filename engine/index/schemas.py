"""Define the Arrow schemas of the index's tables, and turn arrays of vectors into columns and back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def make_photo_schema(num_queries: int, embed_dim: int) -> pa.Schema:
    """Return the schema of the table of photos."""
    return pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("digest", pa.string(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("vectors", pa.list_(pa.float16(), num_queries * embed_dim), nullable=False),
            pa.field("features", pa.large_binary(), metadata={"lance-encoding:blob": "true"}),
        ]
    )


def make_text_schema(embed_dim: int) -> pa.Schema:
    """Return the schema of the table of texts."""
    return pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float16(), embed_dim), nullable=False),
        ]
    )


def make_caption_schema(embed_dim: int) -> pa.Schema:
    """Return the schema of the table of captions."""
    return pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("photo", pa.int64(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("writer", pa.string(), nullable=False),
            pa.field("writer_digest", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float16(), embed_dim), nullable=False),
        ]
    )


# Roots and the paths below them are bytes, so that names which are not UTF-8 survive.
_PATH_FIELDS = [
    pa.field("root", pa.binary(), nullable=False),
    pa.field("path", pa.binary(), nullable=False),
    pa.field("size", pa.int64(), nullable=False),
    pa.field("mtime_ns", pa.int64(), nullable=False),
]
FILE_SCHEMA = pa.schema(
    [
        *_PATH_FIELDS,
        pa.field("digest", pa.string(), nullable=False),
        pa.field("missing", pa.bool_(), nullable=False),
    ]
)
FAILURE_SCHEMA = pa.schema([*_PATH_FIELDS, pa.field("reason", pa.string(), nullable=False)])


def make_table_schemas(num_queries: int, embed_dim: int) -> dict[str, pa.Schema]:
    """Return the schemas, by name, of the tables that every index has; the table of captions is made when needed."""
    return {
        "photos": make_photo_schema(num_queries, embed_dim),
        "files": FILE_SCHEMA,
        "failures": FAILURE_SCHEMA,
        "texts": make_text_schema(embed_dim),
    }


def make_fixed_lists(vectors: np.ndarray) -> pa.Array:
    """Return vectors (N, ...) as a fixed_size_list<float16> column with one list for each row."""
    flat = np.ascontiguousarray(vectors, dtype=np.float16).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), flat.size // len(vectors))


def read_fixed_lists(column: pa.ChunkedArray) -> np.ndarray:
    """Return a fixed_size_list column as an array (N, width)."""
    return column.combine_chunks().flatten().to_numpy().reshape(len(column), -1)
