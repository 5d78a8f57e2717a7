//! The committed manual pages are those that this command line would write.
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

#[test]
fn committed_pages_are_not_stale() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    let committed: BTreeMap<String, Vec<u8>> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    let made: BTreeMap<String, Vec<u8>> = tapline::cli::manual_pages().unwrap().into_iter().collect();
    let names = |pages: &BTreeMap<String, Vec<u8>>| pages.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&committed), names(&made), "run: cargo run -- man man");
    for (name, text) in &made {
        assert!(committed[name] == *text, "man/{name} is stale; run: cargo run -- man man");
    }
}
