//! A plan as people read it.

use std::io::Write;

use super::{Answers, Memory, Prompt, Told, Weights};

const MIB: u64 = 1 << 20;

impl Told {
    pub(super) fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        writeln!(out, "{} on {}", self.model, self.device)?;
        for Weights {
            format,
            count,
            read_gb_per_s,
            multiplied_g_per_s,
        } in &self.weights
        {
            writeln!(
                out,
                "  {:>8.1} M weights in {format:5} read at {read_gb_per_s:.1} GB/s by one row, multiplied at \
                 {multiplied_g_per_s:.0} G/s by many",
                count / 1e6
            )?;
        }
        self.write_memory(out)?;
        let how = match self.rates {
            "measured" => "from rates measured just now",
            _ => "from its datasheet and what our kernels reach of an H200's: not measured",
        };
        writeln!(out, "predicted, {how}; answers behind {} tokens:", self.context)?;
        writeln!(
            out,
            "{:>8} {:>12} {:>14} {:>18} {:>22}",
            "answers", "tokens/s", "tokens/s each", "% of it: weights", "% keys and values"
        )?;
        for answers in &self.answers {
            let Answers {
                batch,
                tokens_per_s,
                tokens_per_s_each,
                weights_percent,
                attention_percent,
            } = answers;
            writeln!(
                out,
                "{batch:>8} {tokens_per_s:>12.1} {tokens_per_s_each:>14.1} {weights_percent:>18.0} {attention_percent:>22.0}"
            )?;
        }
        writeln!(out, "{:>8} {:>12} {:>16}", "prompt", "tokens/s", "first token")?;
        for Prompt {
            tokens,
            tokens_per_s,
            first_token_s,
        } in &self.prompts
        {
            writeln!(out, "{tokens:>8} {tokens_per_s:>12.0} {first_token_s:>14.3} s")?;
        }
        Ok(())
    }

    fn write_memory(&self, out: &mut impl Write) -> std::io::Result<()> {
        let Memory {
            available,
            weights,
            cache,
            activations,
        } = self.memory;
        writeln!(
            out,
            "memory: weights {} + keys and values {} + activations {} = {} of {} MiB",
            weights.div_ceil(MIB),
            cache.div_ceil(MIB),
            activations.div_ceil(MIB),
            (weights + cache + activations).div_ceil(MIB),
            available / MIB
        )?;
        let (tokens, full) = (self.cache_tokens, self.context_length);
        writeln!(
            out,
            "cache: {tokens} tokens, which are {} answers at the full context of {full}, or {} at {}",
            tokens / full,
            tokens / self.context,
            self.context
        )
    }
}
