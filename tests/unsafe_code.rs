//! `unsafe` is in `src/sys` alone: the lint that forbids it elsewhere is switched off in one place.
use std::fs;
use std::path::{Path, PathBuf};

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
}

#[test]
fn unsafe_is_in_one_room() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(fs::read_to_string(root.join("Cargo.toml")).unwrap().contains("unsafe_code = \"deny\""));
    let mut all = Vec::new();
    sources(&root.join("src"), &mut all);
    let sys = root.join("src/sys");
    let (mut allowed, mut inside) = (Vec::new(), 0);
    for path in &all {
        let text = fs::read_to_string(path).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            if line.contains("unsafe_code") && !line.contains("deny") {
                allowed.push(format!("{}: {line}", path.strip_prefix(root).unwrap().display()));
            }
            let is_unsafe =
                ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|it| line.contains(it));
            assert!(!is_unsafe || path.starts_with(&sys), "{}: {line}", path.display());
            inside += usize::from(is_unsafe);
        }
    }
    assert_eq!(allowed, ["src/lib.rs: #[allow(unsafe_code)]"]);
    assert!(inside > 20, "nothing was looked at");
}
