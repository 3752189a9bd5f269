//! The published schema of `metadata.json` is the one that the types give. `BLESS=1` writes it anew.

use roadie_model::package::{Metadata, SCHEMA};
use std::path::Path;

#[test]
fn the_published_schema_is_that_of_the_types() {
    let schema = schemars::schema_for!(Metadata);
    let value = serde_json::to_value(&schema).expect("a value");
    let text = serde_json::to_string_pretty(&value).expect("text") + "\n";
    let name = format!("{}.json", SCHEMA.replace('/', "."));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schema").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("makes");
        std::fs::write(&path, &text).expect("writes");
    }
    let published = std::fs::read_to_string(&path).expect("docs/schema has it");
    assert_eq!(published, text, "the types moved: BLESS=1, and think of those who read older ones");
}

/// What earlier versions wrote is read for ever, and what later ones add is no error.
#[test]
fn older_and_newer_metadata_is_read() {
    let first = r#"{"schema":"roadie.package/1","name":"api","version":"1.4.2","target":"x86_64-unknown-linux-gnu","binary":"bin/api",
        "files":[{"path":"bin/api","mode":"0755","size":7,"sha256":"ab"}],"requires":{"arch":"x86_64","libc":"glibc","glibc_min":"2.34","sonames":[]}}"#;
    let read: Metadata = serde_json::from_str(first).expect("reads the first form");
    assert_eq!(read.requires.glibc_min.as_deref(), Some("2.34"));
    let later = first.replace("\"version\"", "\"invented\": {\"later\": [1]}, \"version\"");
    assert_eq!(serde_json::from_str::<Metadata>(&later).expect("reads what it knows"), read);
}
