//! The overlay: one tree laid over another.

use super::tree::{Key, Kind, Node};
use std::collections::{HashMap, HashSet};

/// Lays `over` over `base`: maps key by key, anything else is replaced, nothing (`null`) removes.
pub fn merge(base: Node, over: Node) -> Node {
    let kind = match (base.kind, over.kind) {
        // An overlay with nothing in it changes nothing.
        (kind, Kind::Null) => kind,
        (Kind::Map(entries), Kind::Map(changes)) => Kind::Map(merge_entries(entries, changes)),
        (_, kind) => return without_nulls(Node { place: over.place, kind }),
    };
    Node { place: base.place, kind }
}

fn merge_entries(entries: Vec<(Key, Node)>, changes: Vec<(Key, Node)>) -> Vec<(Key, Node)> {
    let known: HashSet<String> = entries.iter().map(|(k, _)| k.name.clone()).collect();
    let (changed, added): (Vec<_>, Vec<_>) = changes.into_iter().partition(|(k, _)| known.contains(&k.name));
    let mut changed: HashMap<String, (Key, Node)> = changed.into_iter().map(|c| (c.0.name.clone(), c)).collect();
    let mut merged = Vec::with_capacity(entries.len());
    for (key, old) in entries {
        match changed.remove(&key.name) {
            None => merged.push((key, old)),
            Some((_, Node { kind: Kind::Null, .. })) => {}
            Some((new_key, new)) => {
                // What is replaced as a whole comes from the overlay, its key too.
                let both_maps = matches!((&old.kind, &new.kind), (Kind::Map(_), Kind::Map(_)));
                merged.push((if both_maps { key } else { new_key }, merge(old, new)));
            }
        }
    }
    let added = added.into_iter().filter(|(_, v)| !matches!(v.kind, Kind::Null));
    merged.extend(added.map(|(k, v)| (k, without_nulls(v))));
    merged
}

/// A `null` that removes what is not there removes nothing.
fn without_nulls(node: Node) -> Node {
    let kind = match node.kind {
        Kind::Map(entries) => {
            let left = entries.into_iter().filter(|(_, v)| !matches!(v.kind, Kind::Null));
            Kind::Map(left.map(|(k, v)| (k, without_nulls(v))).collect())
        }
        kind => kind,
    };
    Node { place: node.place, kind }
}
