//! Whether there are colours.

use clap::Args;

/// As <https://no-color.org> has it.
#[derive(Clone, Debug, Args)]
pub(crate) struct ColorArgs {
    /// Without colours, as where `NO_COLOR` is set
    #[arg(
        long,
        env = "NO_COLOR",
        value_name = "ANY",
        num_args = 0..=1,
        default_missing_value = "1",
        hide = true
    )]
    no_color: Option<String>,
}

impl ColorArgs {
    pub(crate) fn is_wanted(&self) -> bool {
        self.no_color.as_deref().is_none_or(str::is_empty)
    }
}
