//! Who signed what, and why it does not count.

use crate::common::{KINDS, Workshop, allow, keygen, now, public, run, stock_verifies};
use jiff::tz::TimeZone;
use roadie_model::package::Package;
use roadie_packager::StoreError;
use roadie_packager::trust::{self, AllowedSigners, NAMESPACE, Policy, Refusal, RevokedKeys, Signer, TrustError};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[tokio::test]
async fn openssh_and_roadie_take_each_others_signatures() {
    let shop = Workshop::new();
    let package = shop.pack("one").await;
    for (kind, bits) in KINDS {
        let key = keygen(&shop.dir, &format!("{kind}{bits}"), &["-t", kind, "-b", bits]);
        let line = format!("me@x {}\n", public(&key));
        let allowed = shop.dir.join("allowed");
        fs::write(&allowed, &line).expect("writes");

        let signer = Signer::from_file(&key).expect("reads the key");
        let signed = trust::sign(&shop.store, &package.id, &signer).expect("signs");
        assert!(stock_verifies(&allowed, "me@x", &signed.signature, &signed.statement), "{kind}{bits}: ours, by ssh-keygen");
        let verified = trust::verify(&shop.store, &package, &allow(&line)).expect("reads").expect("trusted");
        assert_eq!((verified.principal.as_str(), &verified.fingerprint), ("me@x", &signed.fingerprint));
        let listed = run(Command::new("ssh-keygen").arg("-lf").arg(key.with_extension("pub")));
        assert!(listed.contains(&verified.fingerprint), "{listed}");

        // The other way round; both digests that ssh-keygen can be told to use.
        for digest in ["sha256", "sha512"] {
            let text = shop.dir.join(format!("{kind}{bits}{digest}"));
            fs::copy(&signed.statement, &text).expect("copies");
            let mut command = Command::new("ssh-keygen");
            command.args(["-Y", "sign", "-n", NAMESPACE, "-O", &format!("hashalg={digest}"), "-f"]).arg(&key).arg(&text);
            run(&mut command);
            let theirs = fs::read(format!("{}.sig", text.display())).expect("a signature");
            let statement = fs::read(&text).expect("reads");
            let (principal, print) = trust::judge(&package, &statement, &theirs, &allow(&line)).expect("theirs, by us");
            assert_eq!((principal.as_str(), &print), ("me@x", &signed.fingerprint));
        }
        fs::remove_file(&signed.signature).expect("removes");
    }
}

/// For each line both say the same, or ours refuses the line and says why.
#[tokio::test]
async fn allowed_signers_mean_the_same_to_both() {
    let shop = Workshop::new();
    let package = shop.pack("one").await;
    let (key, other) = (keygen(&shop.dir, "key", &["-t", "ed25519"]), keygen(&shop.dir, "other", &["-t", "ed25519"]));
    let signed = trust::sign(&shop.store, &package.id, &Signer::from_file(&key).expect("a key")).expect("signs");
    let (mine, others) = (public(&key), public(&other));
    let cases = [
        (format!("me@x {mine}"), true),
        (format!("\t me@x\t{mine}"), true),
        (format!("# nothing\n\nyou@x {others}\nme@x {mine}"), true),
        (format!("you@x {mine}"), false),
        (format!("you@x {mine}\nme@x {mine}"), true),
        (format!("me@x {others}"), false),
        (format!("*@x {mine}"), true),
        (format!("m?@x {mine}"), true),
        (format!("ME@x {mine}"), false),
        (format!("*,!me@* {mine}"), false),
        (format!("!me@*,* {mine}"), false),
        (format!("!you@x {mine}"), false),
        (format!("\"you@x,me@x\" {mine}"), true),
        (format!("me@x namespaces=\"{NAMESPACE}\" {mine}"), true),
        (format!("me@x namespaces=\"git,roadie-*\" {mine}"), true),
        (format!("me@x namespaces=\"git\" {mine}"), false),
        (format!("me@x namespaces=\"*,!roadie-package-v1\" {mine}"), false),
        (format!("me@x NameSpaces=\"*\",valid-after=\"20200101\" {mine}"), true),
        (format!("me@x valid-after=\"20200101\",valid-before=\"99980101\" {mine}"), true),
        (format!("me@x valid-after=\"20980101Z\" {mine}"), false),
        (format!("me@x valid-before=\"202001010000\" {mine}"), false),
        (format!("me@x valid-before=\"20200101000000Z\" {mine}"), false),
        (format!("me@x valid-before=\"2020\" {mine}"), false),
        (format!("me@x valid-before=\"20200101\",valid-after=\"20210101\" {mine}"), false),
        (format!("me@x namespaces={NAMESPACE} {mine}"), false),
        (format!("me@x namespaces=\"a\",namespaces=\"*\" {mine}"), false),
        (format!("me@x no-such-option {mine}"), false),
        (format!("me@x cert-authority {mine}"), false),
        ("me@x".to_owned(), false),
        ("me@x ssh-ed25519 AAAA".to_owned(), false),
    ];
    let file = shop.dir.join("allowed");
    for (text, good) in cases {
        fs::write(&file, format!("{text}\n")).expect("writes");
        let stock = stock_verifies(&file, "me@x", &signed.signature, &signed.statement);
        let ours = AllowedSigners::parse(text.as_bytes(), &TimeZone::UTC).ok().is_some_and(|allowed| {
            let policy = Policy { allowed, revoked: RevokedKeys::default(), identity: Some("me@x".into()), now: now() };
            trust::verify(&shop.store, &package, &policy).expect("reads").is_ok()
        });
        assert_eq!((stock, ours), (good, good), "ssh-keygen and roadie on: {text}");
    }
}

/// The reason for the only signature of a package.
fn refusal(shop: &Workshop, package: &Package, policy: &Policy) -> Refusal {
    let mut refused = trust::verify(&shop.store, package, policy).expect("reads").expect_err("refused").refusals;
    assert_eq!(refused.len(), 1);
    refused.remove(0).1
}

#[tokio::test]
async fn each_refusal_has_its_own_sentence() {
    let shop = Workshop::new();
    let (one, two) = (shop.pack("one").await, shop.pack("two").await);
    let (key, other) = (keygen(&shop.dir, "key", &["-t", "ed25519"]), keygen(&shop.dir, "other", &["-t", "ecdsa"]));
    let me = allow(&format!("me@x {}", public(&key)));
    let mut said = Vec::new();
    let mut expect = |refusal: Refusal, text: &str| {
        assert!(refusal.to_string().contains(text), "`{text}` is not in: {refusal}");
        assert!(!refusal.hint().is_empty());
        said.push(std::mem::discriminant(&refusal));
    };
    expect(refusal(&shop, &one, &me), "nobody signed it");

    let signer = Signer::from_file(&key).expect("a key");
    let signed = trust::sign(&shop.store, &one.id, &signer).expect("signs");
    let (statement, signature) = (fs::read(&signed.statement).expect("reads"), fs::read(&signed.signature).expect("reads"));
    expect(refusal(&shop, &one, &allow(&format!("me@x {}", public(&other)))), "is not in allowed_signers");
    expect(refusal(&shop, &one, &allow(&format!("me@x namespaces=\"git\" {}", public(&key)))), "may not sign packages");
    expect(
        refusal(&shop, &one, &allow(&format!("me@x valid-before=\"20200101Z\" {}", public(&key)))),
        "counted only until 2020-01-01",
    );
    expect(
        refusal(&shop, &one, &allow(&format!("me@x valid-after=\"20980101Z\" {}", public(&key)))),
        "counts only from 2098-01-01",
    );
    let named = Policy { identity: Some("boss@x".into()), ..me.clone() };
    expect(refusal(&shop, &one, &named), "not `boss@x`");
    let revoked = RevokedKeys::parse(format!("# lost\n{}\n{}\n", public(&other), public(&key)).as_bytes()).expect("parses");
    expect(refusal(&shop, &one, &Policy { revoked, ..me.clone() }), "was revoked");
    let judge = |statement: &[u8], signature: &[u8]| trust::judge(&one, statement, signature, &me).expect_err("refused");
    expect(judge(&statement, b"-----BEGIN SSH SIGNATURE-----\n"), "malformed");
    let text = String::from_utf8(statement.clone()).expect("text");
    expect(judge(text.replace("name one", "name two").as_bytes(), &signature), "tampered with");
    let theirs = shop.signed_by_ssh_keygen(&key, "file", &text);
    expect(judge(&statement, &theirs), "made in the namespace `file`");
    let invented = text.replace("name one", "name two");
    expect(
        judge(invented.as_bytes(), &shop.signed_by_ssh_keygen(&key, NAMESPACE, &invented)),
        "it says `name two` where `name one`",
    );
    let longer = format!("{text}and more\n");
    assert!(judge(longer.as_bytes(), &shop.signed_by_ssh_keygen(&key, NAMESPACE, &longer)).to_string().contains("`and more`"));
    let short = keygen(&shop.dir, "short", &["-t", "rsa", "-b", "1024"]);
    expect(judge(&statement, &shop.signed_by_ssh_keygen(&short, NAMESPACE, &text)), "an RSA key of 1024 bits");

    // A good signature and its statement, moved to another package.
    let folder = shop.store.root().join("objects").join(&two.id.as_str()[..2]);
    fs::copy(&signed.statement, folder.join(format!("{}.statement", two.id))).expect("copies");
    fs::copy(&signed.signature, folder.join(format!("{}.moved.sig", two.id))).expect("copies");
    expect(refusal(&shop, &two, &me), &format!("of another package, {}", one.id.short()));
    fs::remove_file(&signed.statement).expect("removes");
    expect(refusal(&shop, &one, &me), "is missing");
    let count = said.len();
    said.dedup();
    assert_eq!((said.len(), count), (14, 14), "a kind of refusal each");
}

#[tokio::test]
async fn one_signature_of_several_is_enough() {
    let shop = Workshop::new();
    let package = shop.pack("one").await;
    let keys: Vec<PathBuf> = ["a", "b", "c"].iter().map(|name| keygen(&shop.dir, name, &["-t", "ed25519"])).collect();
    for key in &keys[..2] {
        trust::sign(&shop.store, &package.id, &Signer::from_file(key).expect("a key")).expect("signs");
    }
    for (index, key) in keys.iter().enumerate() {
        let verdict = trust::verify(&shop.store, &package, &allow(&format!("me {}", public(key)))).expect("reads");
        assert_eq!(verdict.is_ok(), index < 2);
    }
    let none =
        trust::verify(&shop.store, &package, &allow(&format!("me {}", public(&keys[2])))).expect("reads").expect_err("refused");
    assert_eq!(none.refusals.len(), 2, "a reason for each signature");
    // Signed twice with one key is signed once.
    trust::sign(&shop.store, &package.id, &Signer::from_file(&keys[0]).expect("a key")).expect("signs");
    let again =
        trust::verify(&shop.store, &package, &allow(&format!("me {}", public(&keys[2])))).expect("reads").expect_err("refused");
    assert_eq!(again.refusals.len(), 2);
}

#[tokio::test]
async fn what_is_signed_is_verified_first() {
    let shop = Workshop::new();
    let (one, two) = (shop.pack("one").await, shop.pack("two").await);
    let signer = Signer::from_file(&keygen(&shop.dir, "key", &["-t", "ed25519"])).expect("a key");
    // The index is what a deployment takes the unit from: no digest of the archive covers it.
    let index = one.archive.display().to_string().replace(".tar.gz", ".json");
    let text = fs::read_to_string(&index).expect("reads").replace("ExecStart={{exec}}", "ExecStart=/bin/evil");
    fs::write(&index, text).expect("writes");
    let error = trust::sign(&shop.store, &one.id, &signer).expect_err("refused");
    let TrustError::Store(StoreError::Damaged { reason, .. }) = error else { panic!("{error}") };
    assert!(reason.contains("`systemd.service`"), "{reason}");
    let mut bytes = fs::read(&two.archive).expect("reads");
    bytes.push(0);
    fs::write(&two.archive, bytes).expect("writes");
    assert!(matches!(trust::sign(&shop.store, &two.id, &signer), Err(TrustError::Store(StoreError::Damaged { .. }))));
    assert!(fs::read_dir(two.archive.parent().expect("a folder")).expect("reads").flatten().all(|e| !e.path().ends_with(".sig")));
}

#[test]
fn keys_that_cannot_be_used_say_what_to_do() {
    let shop = Workshop::new();
    let hint = |path: &Path, said: &str| {
        let error = Signer::from_file(path).expect_err("refused");
        assert!(error.to_string().contains(said), "{error}");
        error.hint().expect("a hint")
    };
    let locked = keygen(&shop.dir, "locked", &["-t", "ed25519", "-N", "secret"]);
    assert!(hint(&locked, "has a passphrase").contains(&format!("ssh-add {}", locked.display())));
    assert!(hint(&locked.with_extension("pub"), "is a public key").contains("--agent=FILE.pub"));
    assert!(hint(&keygen(&shop.dir, "old", &["-t", "rsa", "-m", "PEM"]), "not in OpenSSH's format").contains("ssh-keygen -p -f"));
    assert!(hint(&shop.dir.join("none"), "No such file").contains("private key file"));
    let garbage = shop.dir.join("garbage");
    fs::write(&garbage, [0xff, 0, 1]).expect("writes");
    assert!(hint(&garbage, "no private key").contains("ssh-keygen -t ed25519"));
}
