//! SBOM and provenance.

use crate::common::{Workshop, run};
use jiff::Timestamp;
use roadie_model::id::PackageId;
use roadie_packager::StoreError;
use roadie_packager::trust;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

#[tokio::test]
async fn the_sbom_is_of_the_binary_and_always_the_same() {
    let shop = Workshop::new();
    let list = r#"{"packages":[{"name":"api","version":"1.2.3","source":"local","dependencies":[2,1],"root":true},
        {"name":"serde","version":"1.0.200","source":"crates.io"},
        {"name":"cc","version":"1.1.0","source":"crates.io","kind":"build"},{"name":"fork","version":"0.1.0","source":"git"}]}"#;
    let package = shop.pack_auditable(list.as_bytes()).await;
    let beside = PathBuf::from(package.archive.display().to_string().replace(".tar.gz", ".cdx.json"));
    let written = fs::read_to_string(&beside).expect("written when packed");
    let text = trust::sbom(&shop.store, &package).expect("reads").expect("has one");
    assert_eq!(text, written);
    let bom: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((bom["bomFormat"].as_str(), bom["specVersion"].as_str()), (Some("CycloneDX"), Some("1.5")));
    assert_eq!(bom["metadata"]["component"]["hashes"][0]["content"], package.id.as_str());
    assert!(bom["metadata"]["timestamp"].is_null());
    let of =
        |name: &str| bom["components"].as_array().expect("a list").iter().find(|c| c["name"] == name).expect("listed").clone();
    assert_eq!(of("serde")["purl"], "pkg:cargo/serde@1.0.200");
    assert_eq!((of("serde")["scope"].as_str(), of("cc")["scope"].as_str()), (Some("required"), Some("excluded")));
    assert!(of("fork")["purl"].is_null() && of("api")["type"] == "application");
    let edges = bom["dependencies"].as_array().expect("a list");
    let api = edges.iter().find(|e| e["ref"] == "pkg:cargo/api@1.2.3#local").expect("its edges");
    assert_eq!(api["dependsOn"], serde_json::json!(["pkg:cargo/cc@1.1.0", "pkg:cargo/serde@1.0.200"]));

    // Another store, another time: the same text.
    let other = Workshop::new();
    let again = other.pack_auditable(list.as_bytes()).await;
    assert_eq!(again.id, package.id);
    assert_eq!(trust::sbom(&other.store, &again).expect("reads").expect("has one"), text);

    // Without the list there is none; with a broken one the package is made all the same, and asking says why.
    let plain = shop.pack("plain").await;
    assert!(trust::sbom(&shop.store, &plain).expect("reads").is_none());
    for broken in [&b"{"[..], br#"{"packages":[{"name":"a","version":"1.0.0","source":"local","dependencies":[0]}]}"#] {
        let package = Workshop::new().pack_auditable_into(&shop.store, broken).await;
        let error = trust::sbom(&shop.store, &package).expect_err("unreadable");
        assert!(error.to_string().contains("dependency list in `bin/api`"), "{error}");
    }
    let bomb = Workshop::new().pack_auditable_into(&shop.store, &vec![b' '; 9 << 20]).await;
    assert!(trust::sbom(&shop.store, &bomb).expect_err("too much").to_string().contains("unpacks to more than"));
}

#[tokio::test]
async fn provenance_tells_the_commit_and_does_not_change_the_package() {
    let shop = Workshop::new();
    let package = shop.pack("one").await;
    let note = |shop: &Workshop, id: &PackageId| -> serde_json::Value {
        let text = trust::provenance(&shop.store, id).expect("reads").expect("written");
        serde_json::from_str(&text).expect("JSON")
    };
    let first = note(&shop, &package.id);
    assert_eq!(first["_type"], "https://in-toto.io/Statement/v1");
    assert_eq!(first["predicateType"], "https://slsa.dev/provenance/v1");
    assert_eq!(first["subject"][0]["digest"]["sha256"], package.id.as_str());
    assert_eq!(first["subject"][1]["digest"]["sha256"], package.archive_sha256.as_str());
    let build = &first["predicate"]["buildDefinition"];
    assert_eq!(build["externalParameters"]["service"], "one");
    assert_eq!(build["externalParameters"]["build"]["type"], "prebuilt");
    assert_eq!(build["resolvedDependencies"], serde_json::json!([]), "not in git");
    let run_details = &first["predicate"]["runDetails"];
    assert_eq!(run_details["builder"]["version"]["roadie"], env!("CARGO_PKG_VERSION"));
    let time = |name: &str| run_details["metadata"][name].as_str().and_then(|t| t.parse::<Timestamp>().ok()).expect(name);
    assert!(time("startedOn") <= time("finishedOn"));

    // In git: the commit, then a change. The package is the same, as its bytes are.
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=t", "-c", "user.email=t@x", "-c", "commit.gpgsign=false"]).args(args);
        run(command.current_dir(shop.project()))
    };
    for args in [&["init", "-q"][..], &["add", "."], &["commit", "-qm", "first"]] {
        git(args);
    }
    let head = git(&["rev-parse", "HEAD"]).trim().to_owned();
    for (index, dirty) in [(0, false), (1, true)] {
        if dirty {
            fs::write(shop.project().join("untracked"), "x").expect("writes");
        }
        let other = shop.with_store(&format!("store{index}"));
        let again = other.pack("one").await;
        assert_eq!(again.id, package.id);
        let source = note(&other, &again.id)["predicate"]["buildDefinition"]["resolvedDependencies"][0].clone();
        assert_eq!(
            (source["digest"]["gitCommit"].as_str(), source["annotations"]["dirty"].as_bool()),
            (Some(head.as_str()), Some(dirty))
        );
    }

    // What was packed before is not made again, nor is its story told again.
    shop.pack("one").await;
    assert_eq!(note(&shop, &package.id), first);
    let two = shop.pack("two").await;
    let place = |id: &roadie_model::package::Package| id.archive.display().to_string().replace(".tar.gz", ".intoto.json");
    fs::copy(place(&package), place(&two)).expect("copies");
    assert!(matches!(trust::provenance(&shop.store, &two.id), Err(StoreError::Note { .. })));
    fs::remove_file(place(&two)).expect("removes");
    assert!(trust::provenance(&shop.store, &two.id).expect("reads").is_none());
}

/// cargo builds name their compiler.
#[tokio::test]
async fn provenance_of_a_cargo_build_names_the_compiler() {
    let shop = Workshop::new();
    let dir = shop.project();
    fs::create_dir_all(dir.join("src")).expect("makes");
    fs::write(dir.join("src/main.rs"), "fn main() {}\n").expect("writes");
    fs::write(dir.join("Cargo.toml"), "[package]\nname = \"tiny\"\nversion = \"0.3.0\"\nedition = \"2024\"\n[workspace]\n")
        .expect("writes");
    let package = shop.pack_text("services:\n  tiny: {runtime: local, build: {type: cargo, profile: dev}}\n").await;
    let text = trust::provenance(&shop.store, &package.id).expect("reads").expect("written");
    let note: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let rustc = note["predicate"]["runDetails"]["builder"]["version"]["rustc"].as_str().expect("a compiler");
    assert!(rustc.starts_with("rustc 1."), "{rustc}");
    assert_eq!(trust::statement(&package).lines().nth(3), Some("version 0.3.0"));
}
