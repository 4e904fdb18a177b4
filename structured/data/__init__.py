"""Multi-label data: one type, its readers, named splits, public sets by name, embedded digits."""

from structured.data.arff import ArffTable, read_arff
from structured.data.digits import digit_strips, rule_names, rules
from structured.data.libsvm import read_libsvm
from structured.data.mulan import read_mulan, read_mulan_labels
from structured.data.multilabel import MultiLabelData, Split
from structured.data.npz import read_npz, write_npz
from structured.data.registry import known_names, load
from structured.data.splits import (
    carve,
    iterative_stratification,
    joined,
    shares,
    stratified,
    train_validation_test,
)

__all__ = [
    "ArffTable",
    "MultiLabelData",
    "Split",
    "carve",
    "digit_strips",
    "iterative_stratification",
    "joined",
    "known_names",
    "load",
    "read_arff",
    "read_libsvm",
    "read_mulan",
    "read_mulan_labels",
    "read_npz",
    "rule_names",
    "rules",
    "shares",
    "stratified",
    "train_validation_test",
    "write_npz",
]
