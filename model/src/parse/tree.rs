//! YAML text to a tree whose every key and value knows its place. The only place that knows the YAML library.
//!
//! Budgets keep hostile files harmless: size, depth, and the number of nodes that aliases expand to.

use super::{Diagnostic, SourceFile};
use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use std::collections::HashMap;

/// Largest file, bytes.
const MAX_BYTES: usize = 1 << 20;
/// Deepest nesting.
const MAX_DEPTH: usize = 32;
/// Nodes that aliases may expand to in all.
const MAX_EXPANDED: usize = 1000;

/// A place in one of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub file: usize,
    pub line: usize,
    pub column: usize,
}

/// A value and its place.
#[derive(Debug, Clone)]
pub struct Node {
    pub place: Place,
    pub kind: Kind,
}

#[derive(Debug, Clone)]
pub enum Kind {
    Null,
    /// A plain scalar: its type is decided by who reads it.
    Plain(String),
    /// A quoted or block scalar: always text.
    Text(String),
    /// Text that a variable was filled into: its type, too, is decided by who reads it.
    Filled(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key and its place.
#[derive(Debug, Clone)]
pub struct Key {
    pub place: Place,
    pub name: String,
}

impl Node {
    /// What it is, for messages.
    pub fn describe(&self) -> &'static str {
        match &self.kind {
            Kind::Null => "nothing",
            Kind::Plain(text) if text == "true" || text == "false" => "true or false",
            Kind::Plain(text) if text.parse::<f64>().is_ok() => "a number",
            Kind::Plain(_) | Kind::Text(_) | Kind::Filled(_) => "text",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a map",
        }
    }

    fn size(&self) -> usize {
        1 + match &self.kind {
            Kind::List(items) => items.iter().map(Node::size).sum(),
            Kind::Map(entries) => entries.iter().map(|(_, v)| 1 + v.size()).sum(),
            _ => 0,
        }
    }
}

/// Reads one file with one document in it.
pub fn load(source: &SourceFile, file: usize) -> Result<Node, Diagnostic> {
    let mut loader = Loader { source, file, anchors: HashMap::new(), expanded: 0 };
    if source.text.len() > MAX_BYTES {
        return Err(loader.error(Place { file, line: 1, column: 1 }, "the file is larger than 1 MiB".into(), None));
    }
    loader.load()
}

struct Loader<'a> {
    source: &'a SourceFile,
    file: usize,
    anchors: HashMap<usize, Node>,
    expanded: usize,
}

type Events<'a> = Parser<'a, saphyr_parser::StrInput<'a>>;

impl<'a> Loader<'a> {
    fn error(&self, place: Place, message: String, hint: Option<String>) -> Diagnostic {
        Diagnostic { file: self.source.name.clone(), line: place.line, column: place.column, message, hint }
    }

    fn place(&self, span: Span) -> Place {
        Place { file: self.file, line: span.start.line(), column: span.start.col() + 1 }
    }

    fn next(&self, events: &mut Events<'a>) -> Result<(Event<'a>, Span), Diagnostic> {
        match events.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(e)) => {
                let place = Place { file: self.file, line: e.marker().line(), column: e.marker().col() + 1 };
                let hint = e.info().contains("tab").then(|| "indent with spaces".to_owned());
                Err(self.error(place, format!("not valid YAML: {}", e.info()), hint))
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn load(&mut self) -> Result<Node, Diagnostic> {
        let mut events = Parser::new_from_str(&self.source.text);
        let mut root: Option<Node> = None;
        loop {
            let (event, span) = self.next(&mut events)?;
            match event {
                Event::StreamEnd => break,
                Event::Nothing | Event::StreamStart | Event::DocumentEnd => {}
                Event::DocumentStart(_) if root.is_some() => {
                    return Err(self.error(self.place(span), "a second YAML document: one file holds one".into(), None));
                }
                Event::DocumentStart(_) => {}
                event => root = Some(self.node(event, span, &mut events, 1)?),
            }
        }
        let start = Place { file: self.file, line: 1, column: 1 };
        Ok(root.unwrap_or(Node { place: start, kind: Kind::Null }))
    }

    fn node(&mut self, event: Event<'a>, span: Span, events: &mut Events<'a>, depth: usize) -> Result<Node, Diagnostic> {
        let place = self.place(span);
        if depth > MAX_DEPTH {
            return Err(self.error(place, format!("nested deeper than {MAX_DEPTH} levels"), None));
        }
        let (kind, anchor) = match event {
            Event::Scalar(text, style, anchor, _) => (scalar(text.into_owned(), style), anchor),
            Event::SequenceStart(anchor, _) => (self.list(events, depth)?, anchor),
            Event::MappingStart(anchor, _) => (self.map(events, depth)?, anchor),
            Event::Alias(id) => return self.alias(id, place),
            _ => (Kind::Null, 0),
        };
        let node = Node { place, kind };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    /// The anchored value, at its own place: mistakes in it are shown where it is written.
    fn alias(&mut self, id: usize, place: Place) -> Result<Node, Diagnostic> {
        let Some(node) = self.anchors.get(&id).cloned() else {
            return Err(self.error(place, "an alias inside of its own anchor".into(), None));
        };
        self.expanded += node.size();
        if self.expanded > MAX_EXPANDED {
            return Err(self.error(place, format!("aliases expand to more than {MAX_EXPANDED} values"), None));
        }
        Ok(node)
    }

    fn list(&mut self, events: &mut Events<'a>, depth: usize) -> Result<Kind, Diagnostic> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next(events)?;
            match event {
                Event::SequenceEnd | Event::StreamEnd => return Ok(Kind::List(items)),
                event => items.push(self.node(event, span, events, depth + 1)?),
            }
        }
    }

    fn map(&mut self, events: &mut Events<'a>, depth: usize) -> Result<Kind, Diagnostic> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        loop {
            let (event, span) = self.next(events)?;
            let place = self.place(span);
            let name = match event {
                Event::MappingEnd | Event::StreamEnd => return Ok(Kind::Map(entries)),
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(self.error(place, "a key must be plain text".into(), None)),
            };
            if let Some((first, _)) = entries.iter().find(|(k, _)| k.name == name) {
                let hint = format!("it stands at line {} already", first.place.line);
                return Err(self.error(place, format!("key `{name}` stands twice"), Some(hint)));
            }
            let (event, span) = self.next(events)?;
            let value = self.node(event, span, events, depth + 1)?;
            if name == "<<" {
                merge_key(&mut entries, value);
            } else {
                entries.push((Key { place, name }, value));
            }
        }
    }
}

/// YAML 1.1's merge key: what stands in the map itself wins.
fn merge_key(entries: &mut Vec<(Key, Node)>, value: Node) {
    let maps = match value.kind {
        Kind::List(items) => items,
        _ => vec![value],
    };
    for map in maps {
        if let Kind::Map(merged) = map.kind {
            for (key, value) in merged {
                if !entries.iter().any(|(k, _)| k.name == key.name) {
                    entries.push((key, value));
                }
            }
        }
    }
}

fn scalar(text: String, style: ScalarStyle) -> Kind {
    match style {
        ScalarStyle::Plain if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL") => Kind::Null,
        ScalarStyle::Plain => Kind::Plain(text),
        _ => Kind::Text(text),
    }
}
