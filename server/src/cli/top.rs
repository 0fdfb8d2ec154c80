//! `rempart top`: a live view of a running server, here or elsewhere.

pub(super) use rempart_terminal::{TopArgs, top};
