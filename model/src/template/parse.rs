//! Pieces to a tree of blocks and expressions, with every mistake told and not only the first.

use super::expr::{Expr, expression};
use super::scan::{Piece, Tag, TagKind, scan};
use super::{Spot, TemplateProblem};
use serde_json::Value;

/// Deepest nesting of blocks: whoever walks over the tree recurses no deeper.
const DEEPEST: usize = 32;
/// Most mistakes that are told.
const MOST: usize = 100;

#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    Value(Expr),
    Block(Box<Block>),
}

#[derive(Debug)]
pub(super) struct Block {
    pub kind: BlockKind,
    pub subject: Expr,
    /// Names behind `as |a b|`.
    pub names: Vec<String>,
    pub body: Vec<Node>,
    pub other: Vec<Node>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockKind {
    If,
    Unless,
    Each,
    With,
}

/// A block that is not closed yet.
struct Open {
    name: String,
    at: Spot,
    block: Block,
    /// The part that is being read is behind an `else` without a condition.
    last: bool,
    in_other: bool,
    /// Opened by `else if`: closed together with the block around it.
    chained: bool,
}

struct Parser {
    done: Vec<Node>,
    open: Vec<Open>,
    problems: Vec<TemplateProblem>,
}

/// The tree, and what is wrong. A tree with problems is only good for finding more of them.
pub(super) fn parse(text: &str) -> (Vec<Node>, Vec<TemplateProblem>) {
    let pieces = match scan(text) {
        Ok(pieces) => pieces,
        Err(problem) => return (Vec::new(), vec![problem]),
    };
    let mut parser = Parser { done: Vec::new(), open: Vec::new(), problems: Vec::new() };
    for piece in pieces {
        let result = match piece {
            Piece::Text(text) => {
                parser.push(Node::Text(text));
                Ok(())
            }
            Piece::Tag(tag) => parser.tag(&tag),
        };
        if let Err(problem) = result {
            parser.problems.push(problem);
        }
        if parser.problems.len() >= MOST {
            return (Vec::new(), parser.problems);
        }
    }
    while let Some(open) = parser.open.pop() {
        if !open.chained {
            let shown = format!("{{{{#{}}}}}", open.name);
            parser.problems.push(open.at.problem(&shown, "is not closed", format!("close it with `{{{{/{}}}}}`", open.name)));
        }
        parser.push(Node::Block(Box::new(open.block)));
    }
    (parser.done, parser.problems)
}

impl Parser {
    fn push(&mut self, node: Node) {
        match self.open.last_mut() {
            Some(open) if open.in_other => open.block.other.push(node),
            Some(open) => open.block.body.push(node),
            None => self.done.push(node),
        }
    }

    fn tag(&mut self, tag: &Tag) -> Result<(), TemplateProblem> {
        match tag.kind {
            TagKind::Comment | TagKind::Raw => Ok(()),
            TagKind::Value => {
                let (expr, names) = expression(tag, &tag.inner)?;
                if !names.is_empty() {
                    return Err(tag.at.problem(&tag.inner, "has `as |...|` outside of a block", "take it away"));
                }
                self.push(Node::Value(expr));
                Ok(())
            }
            TagKind::Open => self.open(tag, &tag.inner, false),
            TagKind::Else => self.otherwise(tag),
            TagKind::Close => self.close(tag),
        }
    }

    fn open(&mut self, tag: &Tag, inner: &str, chained: bool) -> Result<(), TemplateProblem> {
        let (name, rest) = inner.split_once(char::is_whitespace).unwrap_or((inner, ""));
        let kind = match name {
            "if" => Some(BlockKind::If),
            "unless" => Some(BlockKind::Unless),
            "each" => Some(BlockKind::Each),
            "with" => Some(BlockKind::With),
            _ => None,
        };
        if self.open.len() >= DEEPEST {
            return Err(tag.at.problem(inner, format!("is nested more than {DEEPEST} blocks deep"), "make the template simpler"));
        }
        let known = "blocks are `if`, `unless`, `each` and `with`";
        let parsed = match kind {
            None => Err(tag.at.problem(name, "is not a block", known)),
            Some(_) => expression(tag, rest),
        };
        // A block that is wrong is opened all the same: its end must not be told as a second mistake.
        let (subject, names) = parsed.unwrap_or_else(|problem| {
            self.problems.push(problem);
            (Expr::Literal(Value::Null, tag.at), Vec::new())
        });
        let kind = kind.unwrap_or(BlockKind::If);
        let most = match kind {
            BlockKind::Each => 2,
            BlockKind::With => 1,
            _ => 0,
        };
        if names.len() > most {
            let problem = tag.at.problem(inner, format!("names more than {most} values"), "take some away behind `as`");
            self.problems.push(problem);
        }
        let block = Block { kind, subject, names, body: Vec::new(), other: Vec::new() };
        self.open.push(Open { name: name.to_owned(), at: tag.at, block, last: false, in_other: false, chained });
        Ok(())
    }

    fn otherwise(&mut self, tag: &Tag) -> Result<(), TemplateProblem> {
        let Some(open) = self.open.last_mut() else {
            return Err(tag.at.problem("else", "stands outside of a block", "open one with `{{#if x}}`"));
        };
        if open.last {
            return Err(tag.at.problem("else", "comes a second time", "a block has one `{{else}}`, and it is the last"));
        }
        open.in_other = true;
        match tag.inner.strip_prefix("else").map(str::trim_start).filter(|rest| !rest.is_empty()) {
            None => {
                open.last = true;
                Ok(())
            }
            Some(rest) => self.open(tag, rest, true),
        }
    }

    fn close(&mut self, tag: &Tag) -> Result<(), TemplateProblem> {
        while let Some(open) = self.open.pop() {
            let (chained, name) = (open.chained, open.name);
            self.push(Node::Block(Box::new(open.block)));
            if chained {
                continue;
            }
            if name == tag.inner {
                return Ok(());
            }
            return Err(tag.at.problem(
                &tag.inner,
                format!("closes a block that is open as `{name}`"),
                "close the inner block first",
            ));
        }
        Err(tag.at.problem(&tag.inner, "closes a block that is not open", "take it away"))
    }
}
