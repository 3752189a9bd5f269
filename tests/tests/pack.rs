//! Packing through the command line: killed at any moment, under any circumstances, the store is whole and the bytes are the same.

use roadie_tests::{Project, roadie, workspace};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// All packages of a store are whole: each index has its archive, whose bytes give its id.
fn is_whole(project: &Project, store: &str) -> usize {
    let run = project.run_with(&["packages", "verify", "--json"], &[("ROADIE_STORE", store)]).exits(0);
    let objects = Path::new(store).join("objects");
    let mut damaged = Vec::new();
    for folder in std::fs::read_dir(objects).into_iter().flatten().flatten() {
        for entry in std::fs::read_dir(folder.path()).into_iter().flatten().flatten() {
            damaged.extend(Some(entry.path()).filter(|p| p.to_string_lossy().contains(".damaged")));
        }
    }
    assert!(damaged.is_empty(), "{damaged:?}");
    run.stdout.lines().filter(|l| l.contains("\"ok\":true")).count()
}

#[test]
fn a_pack_that_is_killed_leaves_no_bad_package() {
    let kills: u32 = std::env::var("KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let project = Project::new();
    let mut rng = fastrand::Rng::with_seed(9);
    project.write("api", "#!/bin/sh\nexec sleep 1000\n");
    project.write(
        "roadie.yaml",
        "services:\n  api: {runtime: local, build: {type: prebuilt, path: api}, files: [{from: blob, to: blob}]}\n",
    );
    // Nothing is asked of the disk here: in memory, two hundred packs take no time.
    let memory = tempfile::tempdir_in(if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" }).expect("a folder");
    let store = memory.path().join("store").display().to_string();
    let mut blob = vec![0_u8; 300 << 10];
    let mut pack = |seed: u32| {
        blob.iter_mut().for_each(|b| *b = rng.u8(..) & 0x3f);
        blob[..4].copy_from_slice(&seed.to_le_bytes());
        std::fs::write(project.dir.join("blob"), &blob).expect("writes");
        let mut command = project.command(&["pack"]);
        command.env("ROADIE_STORE", &store).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    // The first finds out about the machine; the later ones tell how long one takes.
    let mut time = |seed: u32| {
        let began = Instant::now();
        assert!(pack(seed).status().expect("runs").success());
        began.elapsed()
    };
    time(0);
    let whole_run = (1..=3).map(|n| time(u32::MAX - n)).min().expect("three");
    let (mut cut, mut rng) = (0, fastrand::Rng::with_seed(10));
    // As many as were really cut off.
    let mut seed = 0;
    while cut < kills {
        seed += 1;
        assert!(seed < kills * 5, "only {cut} of {seed} were killed in time");
        let mut child = pack(seed).spawn().expect("starts");
        std::thread::sleep(whole_run.mul_f64(rng.f64()));
        let _ = child.kill();
        cut += u32::from(!child.wait().expect("ends").success());
        if seed % 20 == 0 {
            is_whole(&project, &store);
        }
    }
    let before = is_whole(&project, &store);
    assert!(pack(u32::MAX).status().expect("runs").success());
    assert_eq!(is_whole(&project, &store), before + 1);
    // What the killed ones left goes with the next gc, once it is old; what is in use stays.
    let tmp = Path::new(&store).join("tmp");
    let old = std::time::SystemTime::now() - Duration::from_secs(3 * 24 * 3600);
    for entry in std::fs::read_dir(&tmp).expect("reads").flatten() {
        std::fs::File::open(entry.path()).and_then(|f| f.set_modified(old)).expect("sets");
    }
    project.run_with(&["packages", "gc", "--keep", "1"], &[("ROADIE_STORE", &store)]).exits(0).says("packages removed");
    assert_eq!(std::fs::read_dir(&tmp).expect("reads").count(), 0);
    assert_eq!(is_whole(&project, &store), 1);
}

#[test]
fn a_damaged_package_is_set_aside_and_made_again() {
    let project = Project::new();
    project.write("api", "#!/bin/sh\nexec sleep 1000\n");
    project.write("roadie.yaml", "services:\n  api: {runtime: local, build: {type: prebuilt, path: api}}\n");
    let store = project.dir.join("store").display().to_string();
    let env = [("ROADIE_STORE", store.as_str())];
    let id = |run: &roadie_tests::Run| {
        let object: serde_json::Value =
            run.stdout.lines().filter_map(|l| serde_json::from_str(l).ok()).next_back().expect("a line");
        let package = &object["package"];
        (package["id"].as_str().expect("id").to_owned(), PathBuf::from(package["archive"].as_str().expect("path")))
    };
    let (first, archive) = id(&project.run_with(&["pack", "--json"], &env).exits(0));
    for damage in ["flip", "truncate", "empty"] {
        let mut bytes = std::fs::read(&archive).expect("reads");
        match damage {
            "flip" => bytes[40] ^= 1,
            "truncate" => bytes.truncate(bytes.len() / 2),
            _ => bytes.clear(),
        }
        std::fs::write(&archive, bytes).expect("writes");
        let again = project.run_with(&["pack", "--json"], &env).exits(0);
        assert_eq!(id(&again).0, first, "{damage}");
        assert!(again.stdout.contains("\"unchanged\":false"), "{damage}: it was made again");
        project.run_with(&["packages", "verify"], &env).exits(0);
        assert!(project.run_with(&["pack", "--json"], &env).exits(0).stdout.contains("\"unchanged\":true"));
    }
    let set_aside = PathBuf::from(format!("{}.damaged", archive.display()));
    assert!(set_aside.exists(), "{}", set_aside.display());
}

/// Another user, home, umask, time zone, language, number of jobs and of threads, another folder: the same package, C code in it.
#[test]
fn the_same_package_under_any_circumstances() {
    let project = Project::new();
    let fixture = workspace().join("tests/fixtures/sealed");
    let place = |folder: &str| {
        let dir = project.dir.join(folder);
        for file in ["Cargo.toml", "Cargo.lock", "build.rs", "src/main.rs", "src/part.c", "roadie.yaml"] {
            let to = dir.join(file);
            std::fs::create_dir_all(to.parent().expect("a folder")).expect("makes");
            std::fs::copy(fixture.join(file), to).expect("copies");
        }
        dir
    };
    let real = |variable: &str, folder: &str| {
        let home = std::env::var("HOME").expect("HOME");
        std::env::var(variable).unwrap_or_else(|_| format!("{home}/{folder}"))
    };
    let (cargo_home, rustup_home) = (real("CARGO_HOME", ".cargo"), real("RUSTUP_HOME", ".rustup"));
    let other_home = project.dir.join("other-cargo");
    std::fs::create_dir_all(&other_home).expect("makes");
    for entry in std::fs::read_dir(&cargo_home).expect("reads").flatten() {
        let _ = std::os::unix::fs::symlink(entry.path(), other_home.join(entry.file_name()));
    }
    let other_home = other_home.display().to_string();
    type Circumstance<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);
    let circumstances: [Circumstance<'_>; 4] = [
        (
            "one",
            "umask 022",
            &[("CARGO_HOME", &cargo_home), ("TZ", "UTC"), ("LC_ALL", "C"), ("CARGO_BUILD_JOBS", "2"), ("ROADIE_THREADS", "2")],
        ),
        (
            "two/much deeper",
            "umask 077",
            &[
                ("CARGO_HOME", &cargo_home),
                ("TZ", "Asia/Tokyo"),
                ("LC_ALL", "C.UTF-8"),
                ("CARGO_BUILD_JOBS", "1"),
                ("ROADIE_THREADS", "1"),
            ],
        ),
        (
            "three",
            "umask 002",
            &[
                ("CARGO_HOME", &other_home),
                ("TZ", "America/Caracas"),
                ("LANG", "C.UTF-8"),
                ("USER", "somebody"),
                ("ROADIE_THREADS", "3"),
            ],
        ),
        (
            "four",
            "umask 027; exec unshare --user --map-user=4711 --map-group=4711",
            &[("CARGO_HOME", &cargo_home), ("USER", "other"), ("CARGO_INCREMENTAL", "1")],
        ),
    ];
    let mut packages = BTreeSet::new();
    for (folder, before, env) in circumstances {
        let dir = place(folder);
        let exec = if before.contains("exec") { "" } else { "; exec" };
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("{before}{exec} \"$0\" pack --json")).arg(roadie()).current_dir(&dir);
        command.env("HOME", dir.join("home")).env("RUSTUP_HOME", &rustup_home).env("ROADIE_STORE", dir.join("store"));
        command.env_remove("CARGO_TARGET_DIR").envs(env.iter().copied());
        let output = command.output().expect("runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let packed =
            text.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok()).find(|l| l["event"] == "packed");
        let packed = packed.unwrap_or_else(|| panic!("{folder}: {text}{}", String::from_utf8_lossy(&output.stderr)));
        let package = &packed["package"];
        packages.insert((package["id"].to_string(), package["archive_sha256"].to_string()));
    }
    assert_eq!(packages.len(), 1, "{packages:?}");
}
