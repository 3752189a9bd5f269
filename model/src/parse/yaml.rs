//! YAML text to a tree. The only place that knows the YAML library.
//!
//! Budgets keep hostile files harmless: size, depth, number of values, and what aliases expand to. Without them a file of one
//! MiB can ask for gigabytes: by aliases of aliases, by one long text aliased often, or by anchors inside of anchors.

use super::SourceFile;
use super::problems::Problems;
use super::tree::{Key, Kind, Node, Place, Scalar, printable};
use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use std::borrow::Cow;
use std::collections::HashMap;

/// Largest file, bytes.
pub const MAX_BYTES: usize = 1 << 20;
/// Deepest nesting.
pub const MAX_DEPTH: usize = 32;
/// Most keys and values in a file: the densest file of one MiB has half a million, which is no definition.
pub const MAX_NODES: usize = 50_000;
/// Most keys and values that aliases may expand to in all.
pub const MAX_EXPANDED: usize = 1000;
/// Most text that aliases may expand to in all, and most text kept for aliases, bytes.
const MAX_EXPANDED_BYTES: usize = 1 << 20;

/// A mistake behind which reading cannot go on: it is among the problems already.
pub struct Stop;

/// Reads one file with one document in it.
pub fn load(source: &SourceFile, file: u8, problems: &mut Problems) -> Result<Node, Stop> {
    let start = Place { file, line: 1, column: 1 };
    if source.text.len() > MAX_BYTES {
        problems.add(start, "the file is larger than 1 MiB", None);
        return Err(Stop);
    }
    let text = source.text.strip_prefix('\u{feff}').unwrap_or(&source.text);
    // The library looks ahead: with its own limit well above ours, it is ours that names the place.
    let options = granit_parser::options! { flow_nesting_limit: 1024 };
    let events = Parser::new_from_str_with_options(text, options);
    Loader { events, file, problems, anchors: HashMap::new(), nodes: 0, kept: (0, 0), expanded: (0, 0) }.load(start)
}

struct Loader<'a, 'p> {
    events: Parser<'a, StrInput<'a>>,
    file: u8,
    problems: &'p mut Problems,
    /// `None` is a value too large for any alias.
    anchors: HashMap<usize, Option<Node>>,
    nodes: usize,
    kept: (usize, usize),
    expanded: (usize, usize),
}

impl<'a> Loader<'a, '_> {
    fn stop<T>(&mut self, place: Place, message: &str, hint: Option<&str>) -> Result<T, Stop> {
        self.problems.add(place, message, hint.map(str::to_owned));
        Err(Stop)
    }

    fn place(&self, line: usize, column: usize) -> Place {
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Place { file: self.file, line: small(line.max(1)), column: small(column + 1) }
    }

    fn next(&mut self) -> Result<(Event<'a>, Place), Stop> {
        match self.events.next_event() {
            Some(Ok((event, span))) => Ok((event, self.start(span))),
            Some(Err(error)) => self.refuse(&error),
            None => Ok((Event::StreamEnd, self.place(1, 0))),
        }
    }

    fn start(&self, span: Span) -> Place {
        self.place(span.start.line(), span.start.col())
    }

    fn refuse<T>(&mut self, error: &ScanError) -> Result<T, Stop> {
        let place = self.place(error.marker().line(), error.marker().col());
        let hint = match error.kind() {
            ErrorKind::RecursionLimitExceeded => return self.too_deep(place),
            ErrorKind::TabNotAllowed | ErrorKind::TabInBlockIndentation | ErrorKind::TabInIndentation => {
                Some("indent with spaces")
            }
            _ => None,
        };
        self.stop(place, &format!("not valid YAML: {}", printable(&error.info())), hint)
    }

    fn too_deep<T>(&mut self, place: Place) -> Result<T, Stop> {
        self.stop(place, &format!("nested deeper than {MAX_DEPTH} levels"), None)
    }

    fn load(&mut self, start: Place) -> Result<Node, Stop> {
        let mut root: Option<Node> = None;
        loop {
            let (event, place) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(root.unwrap_or(Node { place: start, kind: Kind::Null })),
                Event::DocumentStart(..) if root.is_some() => {
                    return self.stop(place, "a second YAML document: one file holds one", None);
                }
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                event => root = Some(self.node(event, place, 1)?),
            }
        }
    }

    fn count(&mut self, place: Place) -> Result<(), Stop> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return self.stop(place, &format!("more than {MAX_NODES} keys and values in one file"), None);
        }
        Ok(())
    }

    fn node(&mut self, event: Event<'a>, place: Place, depth: usize) -> Result<Node, Stop> {
        self.count(place)?;
        if depth > MAX_DEPTH {
            return self.too_deep(place);
        }
        let (kind, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => (self.scalar(text.into_owned(), style, tag.as_ref(), place), anchor),
            Event::SequenceStart(_, anchor, tag) => {
                self.refuse_tag(tag.as_ref(), place);
                (self.list(depth)?, anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.refuse_tag(tag.as_ref(), place);
                (self.map(depth)?, anchor)
            }
            Event::Alias(id) => return self.alias(id, place, depth),
            _ => (Kind::Null, 0),
        };
        let node = Node { place, kind };
        self.keep(anchor, &node)?;
        Ok(node)
    }

    fn scalar(&mut self, text: String, style: ScalarStyle, tag: Option<&Cow<'_, Tag>>, place: Place) -> Kind {
        if text.contains('\0') {
            self.problems.add(place, "text cannot hold a NUL character", None);
        }
        let text_by_tag = tag.is_some_and(|t| t.is_yaml_core_schema() && t.suffix() == "str");
        if !text_by_tag {
            self.refuse_tag(tag, place);
        }
        let plain = style == ScalarStyle::Plain && !text_by_tag;
        match text.as_str() {
            "" | "~" | "null" | "Null" | "NULL" if plain => Kind::Null,
            _ => Kind::Scalar(Scalar { text, plain, written: None }),
        }
    }

    fn refuse_tag(&mut self, tag: Option<&Cow<'_, Tag>>, place: Place) {
        if let Some(tag) = tag {
            let shown = printable(&tag.original());
            self.problems.add(place, format!("the tag `{shown}` means nothing here"), Some("remove it".into()));
        }
    }

    /// Keeps a copy for aliases.
    fn keep(&mut self, anchor: usize, node: &Node) -> Result<(), Stop> {
        if anchor == 0 {
            return Ok(());
        }
        let (nodes, bytes) = node.cost();
        let copy = (nodes <= MAX_EXPANDED && bytes <= MAX_EXPANDED_BYTES).then(|| node.clone());
        if copy.is_some() {
            self.kept = (self.kept.0 + nodes, self.kept.1 + bytes);
        }
        if self.kept.0 > MAX_NODES || self.kept.1 > MAX_EXPANDED_BYTES {
            return self.stop(node.place, "the anchors of the file hold too much", Some("remove those that no alias names"));
        }
        self.anchors.insert(anchor, copy);
        Ok(())
    }

    /// The anchored value, at its own place: mistakes in it are shown where it is written.
    fn alias(&mut self, id: usize, place: Place, depth: usize) -> Result<Node, Stop> {
        let node = match self.anchors.get(&id) {
            Some(Some(node)) => node.clone(),
            Some(None) => return self.too_much(place),
            None => return self.stop(place, "an alias inside of its own anchor", None),
        };
        let (nodes, bytes) = node.cost();
        self.expanded = (self.expanded.0 + nodes, self.expanded.1 + bytes);
        if self.expanded.0 > MAX_EXPANDED || self.expanded.1 > MAX_EXPANDED_BYTES {
            return self.too_much(place);
        }
        if depth + height(&node) > MAX_DEPTH + 1 {
            return self.too_deep(place);
        }
        Ok(node)
    }

    fn too_much<T>(&mut self, place: Place) -> Result<T, Stop> {
        self.stop(place, &format!("aliases expand to more than {MAX_EXPANDED} values or 1 MiB"), None)
    }

    fn list(&mut self, depth: usize) -> Result<Kind, Stop> {
        let mut items = Vec::new();
        loop {
            let (event, place) = self.next()?;
            match event {
                Event::SequenceEnd | Event::StreamEnd => return Ok(Kind::List(items)),
                event => items.push(self.node(event, place, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Kind, Stop> {
        let mut map = Entries::default();
        loop {
            let (event, place) = self.next()?;
            let name = match event {
                Event::MappingEnd | Event::StreamEnd => return Ok(Kind::Map(map.finish(self.problems))),
                Event::Scalar(text, style, anchor, tag) => self.key(text.into_owned(), style, anchor, tag.as_ref(), place)?,
                _ => return self.stop(place, "a key must be plain text", None),
            };
            let (event, at) = self.next()?;
            let mut value = self.node(event, at, depth + 1)?;
            if matches!(value.kind, Kind::Null) {
                // Nothing has no place of its own: the library names the next thing behind it.
                value.place = place;
            }
            map.add(Key { place, name }, value, self.problems);
        }
    }

    fn key(
        &mut self,
        text: String,
        style: ScalarStyle,
        anchor: usize,
        tag: Option<&Cow<'_, Tag>>,
        place: Place,
    ) -> Result<String, Stop> {
        self.count(place)?;
        let kind = self.scalar(text.clone(), style, tag, place);
        self.keep(anchor, &Node { place, kind })?;
        Ok(text)
    }
}

/// A map that is being read.
#[derive(Default)]
struct Entries {
    entries: Vec<(Key, Node)>,
    /// Looked up by name: with a search through the list, a file of many keys takes minutes.
    places: HashMap<String, Place>,
    merges: Vec<Node>,
}

impl Entries {
    fn add(&mut self, key: Key, value: Node, problems: &mut Problems) {
        if let Some(first) = self.places.get(&key.name) {
            let message = format!("key `{}` stands twice", printable(&key.name));
            problems.add(key.place, message, Some(format!("it stands at line {} already", first.line)));
            return;
        }
        self.places.insert(key.name.clone(), key.place);
        if key.name == "<<" { self.merges.push(value) } else { self.entries.push((key, value)) }
    }

    /// Fills in what `<<` names: what stands in the map itself wins, then the first map that is named.
    fn finish(mut self, problems: &mut Problems) -> Vec<(Key, Node)> {
        let maps = self.merges.drain(..).flat_map(|value| match value.kind {
            Kind::List(items) => items,
            _ => vec![value],
        });
        for map in maps {
            let Kind::Map(merged) = map.kind else {
                problems.add(map.place, format!("`<<` merges maps, this is {}", map.describe()), None);
                continue;
            };
            for (key, value) in merged {
                if !self.places.contains_key(&key.name) {
                    self.places.insert(key.name.clone(), key.place);
                    self.entries.push((key, value));
                }
            }
        }
        self.entries
    }
}

/// Levels of nesting in a value.
fn height(node: &Node) -> usize {
    1 + match &node.kind {
        Kind::List(items) => items.iter().map(height).max().unwrap_or(0),
        Kind::Map(entries) => entries.iter().map(|(_, v)| height(v)).max().unwrap_or(0),
        _ => 0,
    }
}
