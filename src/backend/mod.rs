//! Training backends: separate programs behind one protocol.
