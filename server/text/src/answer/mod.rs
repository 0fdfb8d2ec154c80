//! What a chat model's answer is made of: reasoning, content, and calls of functions, as its chat template writes them.
//!
//! No list of model families says how calls look. The template itself does: it is rendered with calls of functions whose
//! names and arguments are known, and what stands around them is the syntax ([`Dialect`]). Answers are then read back by
//! the same syntax ([`Reader`]), piece by piece.

mod calls;
mod dialect;
mod instructions;
mod object;
mod reader;
mod reasoning;

pub use calls::CallSyntax;
pub use dialect::{ArgumentsForm, Dialect, EffortArgument, ToolSupport};
pub use reader::{Callable, Part, Reader};
pub use reasoning::ReasoningMarkers;
