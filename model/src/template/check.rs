//! The static check: every path in every position leads to a name that is declared, whether or not it would be reached.

use super::expr::{Expr, Helper, Path, Start};
use super::parse::{Block, BlockKind, Node, parse};
use super::shape::Shape;
use super::{Spot, Style, TemplateProblem};

/// Longest word that is compared to guess what was meant, and most words it is compared with.
const LONGEST_WORD: usize = 64;
const MOST_WORDS: usize = 500;
/// Most mistakes that are told.
const MOST: usize = 100;

/// Checks a template of `style` against the names that there are.
///
/// # Errors
/// Every [`TemplateProblem`], by place.
pub fn check(text: &str, style: Style, declared: &Shape) -> Result<(), Vec<TemplateProblem>> {
    let (nodes, problems) = parse(text);
    let mut checker = Checker { style, frames: vec![Frame { shape: declared.clone(), each: None, names: Vec::new() }], problems };
    checker.walk(&nodes);
    let mut problems = checker.problems;
    problems.sort_by_key(|p| (p.line, p.column));
    problems.dedup();
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// What `this` is, in a block.
struct Frame {
    shape: Shape,
    /// In an `each`: whether `@key` is there.
    each: Option<bool>,
    names: Vec<(String, Shape)>,
}

struct Checker {
    style: Style,
    frames: Vec<Frame>,
    problems: Vec<TemplateProblem>,
}

impl Checker {
    fn problem(&mut self, problem: TemplateProblem) {
        if self.problems.len() < MOST {
            self.problems.push(problem);
        }
    }

    fn walk(&mut self, nodes: &[Node]) {
        for node in nodes {
            match node {
                Node::Text(_) => {}
                Node::Value(expr) => self.value(expr),
                Node::Block(block) => self.block(block),
            }
        }
    }

    fn value(&mut self, expr: &Expr) {
        if let Expr::Call { helper, at, .. } = expr
            && helper.quotes()
            && let Some(hint) = self.style.refuses(*helper)
        {
            self.problem(at.problem(helper.name(), "does not fit this kind of text", hint));
        }
        let shape = self.expr(expr);
        if let (Some(kind), Expr::Path(path)) = (shape.container(), expr) {
            self.problem(container(path.at, &path.raw, kind, self.style));
        }
    }

    fn block(&mut self, block: &Block) {
        let subject = self.expr(&block.subject);
        let frame = match block.kind {
            BlockKind::If | BlockKind::Unless => {
                self.walk(&block.body);
                None
            }
            BlockKind::With => {
                let names = block.names.iter().map(|n| (n.clone(), subject.clone())).collect();
                let shape = if subject == Shape::Null { Shape::Never } else { subject };
                Some(Frame { shape, each: None, names })
            }
            BlockKind::Each => Some(self.each(block, &subject)),
        };
        if let Some(frame) = frame {
            self.frames.push(frame);
            self.walk(&block.body);
            self.frames.pop();
        }
        self.walk(&block.other);
    }

    fn each(&mut self, block: &Block, subject: &Shape) -> Frame {
        let element = subject.element();
        if element.is_none()
            && *subject == Shape::Scalar
            && let Expr::Path(path) = &block.subject
        {
            self.problem(path.at.problem(&path.raw, "is neither a list nor a map", "`{{#each}}` walks over lists and maps"));
        }
        let key = matches!(subject, Shape::Map(_) | Shape::Never);
        // Null is no list: the body is never reached.
        let shape = element.unwrap_or(if *subject == Shape::Null { Shape::Never } else { Shape::Mixed });
        let values = [shape.clone(), Shape::Scalar];
        let names = block.names.iter().cloned().zip(values).collect();
        Frame { shape, each: Some(key), names }
    }

    /// The shape of an expression; [`Shape::Never`] after a mistake, so that it is told once.
    fn expr(&mut self, expr: &Expr) -> Shape {
        match expr {
            Expr::Literal(value, _) => Shape::of(value),
            Expr::Path(path) => match self.find(path) {
                Ok(shape) => shape.clone(),
                Err(problem) => {
                    self.problem(problem);
                    Shape::Never
                }
            },
            Expr::Call { helper, args, .. } => {
                let shapes: Vec<Shape> = args.iter().map(|a| self.expr(a)).collect();
                if matches!(helper, Helper::Sh | Helper::Unit | Helper::Env)
                    && let (Some(kind), Some(Expr::Path(path))) = (shapes.first().and_then(Shape::container), args.first())
                {
                    let name = helper.name();
                    let hint = format!("write its elements one by one, or `{{{{{name} (json {})}}}}`", path.raw);
                    self.problem(path.at.problem(&path.raw, format!("is a {kind}, and `{name}` writes one value"), hint));
                }
                if *helper == Helper::Default { shapes.iter().fold(Shape::Never, |a, b| a.both(b)) } else { Shape::Scalar }
            }
        }
    }

    fn find(&self, path: &Path) -> Result<&Shape, TemplateProblem> {
        let (mut shape, keys) = self.begin(path)?;
        for (index, key) in keys.iter().enumerate() {
            match shape.at(key) {
                Some(next) => shape = next,
                None => return Err(self.undeclared(path, shape, key, path.keys.len() - keys.len() + index)),
            }
        }
        Ok(shape)
    }

    /// The shape that a path begins at, and the keys that lead on from there.
    fn begin<'p>(&self, path: &'p Path) -> Result<(&Shape, &'p [String]), TemplateProblem> {
        let above = || path.at.problem(&path.raw, "goes above the whole template", "take a `../` away");
        let frame = |up: usize| self.frames.len().checked_sub(up + 1).map(|i| &self.frames[i].shape);
        match path.start {
            Start::Root => Ok((&self.frames[0].shape, &path.keys)),
            Start::Here(up) => Ok((frame(up).ok_or_else(above)?, &path.keys)),
            Start::Local(up) => {
                let mut loops = self.frames.iter().rev().filter_map(|f| f.each);
                let keyed = loops.nth(up).ok_or_else(|| {
                    path.at.problem(
                        &path.raw,
                        "stands outside of an `{{#each}}`",
                        "`@index` and its kind belong to the list around them",
                    )
                })?;
                match path.keys.first().map_or("", String::as_str) {
                    "index" | "first" | "last" => Ok((&Shape::Scalar, &[])),
                    "key" if keyed => Ok((&Shape::Scalar, &[])),
                    "key" => Err(path.at.problem(&path.raw, "is not there in a list", "lists have `@index`, maps have `@key`")),
                    _ => {
                        Err(path.at.problem(&path.raw, "is not known", "there are `@index`, `@key`, `@first`, `@last`, `@root`"))
                    }
                }
            }
            Start::Name => {
                let named = |f: &'_ Frame| f.names.iter().position(|(n, _)| Some(n) == path.keys.first());
                let found = self.frames.iter().rev().find_map(|f| Some((f, named(f)?)));
                Ok(match found {
                    Some((frame, at)) => (&frame.names[at].1, &path.keys[1..]),
                    None => (&self.frames[self.frames.len() - 1].shape, &path.keys),
                })
            }
        }
    }

    /// Whether a path begins at the names that roadie gives.
    fn is_top(&self, path: &Path) -> bool {
        path.start == Start::Root || (path.start == Start::Name && self.frames.len() == 1)
    }

    fn undeclared(&self, path: &Path, shape: &Shape, key: &str, index: usize) -> TemplateProblem {
        let raw = &path.raw;
        if let Shape::List(_) = shape {
            return path.at.problem(raw, "takes an element of a list whose length is not known", "walk over it with `{{#each}}`");
        }
        let outer = self.frames.len() > 1 && index == 0 && self.frames[0].shape.at(key).is_some();
        let hint = if self.style == Style::Unit && index == 0 && key == "env" {
            "everybody can read a unit: `EnvironmentFile=-{{env_file}}` brings the environment".to_owned()
        } else if outer {
            format!("inside of `{{{{#each}}}}` and `{{{{#with}}}}` write `@root.{}`", path.keys.join("."))
        } else if super::expr::is_helper(raw) {
            format!("the helper takes a value: `{{{{{raw} x}}}}`")
        } else if let Some(near) = nearest(key, shape.keys()) {
            format!("did you mean `{}`?", near.escape_debug())
        } else if index == 1 && self.is_top(path) && path.keys[0] == "services" {
            "the file has no other remote service of that name".to_owned()
        } else if shape.keys().next().is_none() && index > 0 {
            format!("`{}` has no keys", path.keys[..index].join("."))
        } else {
            "declare it under `vars`".to_owned()
        };
        path.at.problem(raw, "is not declared", hint)
    }
}

pub(super) fn container(at: Spot, raw: &str, kind: &str, style: Style) -> TemplateProblem {
    let walk = format!("`{{{{#each {raw}}}}}`");
    let hint = match style {
        Style::Toml => format!("write `{{{{toml {raw}}}}}`, or walk over it with {walk}"),
        Style::Unit => format!("walk over it with {walk}"),
        Style::Arg | Style::Plain => format!("write `{{{{json {raw}}}}}`, or walk over it with {walk}"),
    };
    at.problem(raw, format!("is a {kind}, and no text"), hint)
}

impl Style {
    /// What to write instead of a helper whose quotes mean something else in this kind of text.
    pub(super) fn refuses(self, helper: Helper) -> Option<String> {
        let name = helper.name();
        match (self, helper) {
            (Style::Toml, Helper::Toml | Helper::Json) | (Style::Unit, Helper::Unit) | (Style::Plain, _) => None,
            (Style::Arg, Helper::Toml | Helper::Json | Helper::Sh) => None,
            (Style::Toml, _) => Some(format!("in TOML write `{{{{toml ({name} x)}}}}`")),
            (Style::Unit, _) => Some(format!("in a unit write `{{{{unit ({name} x)}}}}`")),
            (Style::Arg, _) => Some("roadie quotes the whole argument itself: write `{{x}}`".to_owned()),
        }
    }
}

fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    if word.len() > LONGEST_WORD {
        return None;
    }
    let most = (word.len() / 3).max(1);
    let close = known.take(MOST_WORDS).filter(|k| k.len().abs_diff(word.len()) <= most);
    let measured = close.map(|k| (strsim::osa_distance(word, k), k));
    measured.filter(|(d, _)| *d <= most && *d < word.len()).min().map(|(_, k)| k)
}
