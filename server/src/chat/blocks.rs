//! An answer as a list of blocks: what is said, in order, the same kind joined.

use super::assemble::Said;

/// A part of an answer that is told as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block {
    Reasoning(String),
    Text(String),
    Call {
        id: String,
        name: String,
        arguments: String,
    },
}

/// What became of the blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The block of this number began; it is empty.
    Begun(usize),
    /// It got longer.
    More(usize, String),
    /// It is complete.
    Ended(usize),
}

/// The blocks of one choice.
#[derive(Debug, Default)]
pub struct Blocks {
    all: Vec<Block>,
    /// Whether the last may get longer.
    open: bool,
}

impl Blocks {
    /// The blocks so far.
    pub fn all(&self) -> &[Block] {
        &self.all
    }

    /// Adds what was said.
    pub fn add(&mut self, said: Said) -> Vec<Step> {
        let mut steps = Vec::new();
        let more = match said {
            Said::Content(text) => {
                self.begin_text(Block::Text(String::new()), &mut steps);
                text
            }
            Said::Reasoning(text) => {
                self.begin_text(Block::Reasoning(String::new()), &mut steps);
                text
            }
            Said::Call { id, name, .. } => {
                let arguments = String::new();
                self.begin(Block::Call { id, name, arguments }, &mut steps);
                return steps;
            }
            Said::Arguments { text, .. } => text,
        };
        if let Some(Block::Reasoning(text) | Block::Text(text) | Block::Call { arguments: text, .. }) =
            self.all.last_mut()
        {
            text.push_str(&more);
            steps.push(Step::More(self.all.len() - 1, more));
        }
        steps
    }

    /// Completes the last block.
    pub fn end(&mut self) -> Option<Step> {
        std::mem::take(&mut self.open).then(|| Step::Ended(self.all.len() - 1))
    }

    /// Begins a block unless the last is open and of its kind.
    fn begin_text(&mut self, block: Block, steps: &mut Vec<Step>) {
        let same = |last: &Block| std::mem::discriminant(last) == std::mem::discriminant(&block);
        if !(self.open && self.all.last().is_some_and(same)) {
            self.begin(block, steps);
        }
    }

    fn begin(&mut self, block: Block, steps: &mut Vec<Step>) {
        steps.extend(self.end());
        self.all.push(block);
        self.open = true;
        steps.push(Step::Begun(self.all.len() - 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_kind_is_joined() {
        let text = |text: &str| Said::Content(text.to_owned());
        let call = |index, id: &str| Said::Call {
            index,
            id: id.to_owned(),
            name: "f".to_owned(),
        };
        let said = [
            Said::Reasoning("Hm.".to_owned()),
            text("A"),
            text("b"),
            call(0, "1"),
            Said::Arguments {
                index: 0,
                text: "{}".to_owned(),
            },
            call(1, "2"),
        ];
        let mut blocks = Blocks::default();
        let mut steps: Vec<Step> = said.into_iter().flat_map(|said| blocks.add(said)).collect();
        steps.extend(blocks.end());
        steps.extend(blocks.end());
        let more = |at, text: &str| Step::More(at, text.to_owned());
        let expected = [
            Step::Begun(0),
            more(0, "Hm."),
            Step::Ended(0),
            Step::Begun(1),
            more(1, "A"),
            more(1, "b"),
            Step::Ended(1),
            Step::Begun(2),
            more(2, "{}"),
            Step::Ended(2),
            Step::Begun(3),
            Step::Ended(3),
        ];
        assert_eq!(steps, expected);
        assert_eq!(blocks.all()[1], Block::Text("Ab".to_owned()));
    }
}
