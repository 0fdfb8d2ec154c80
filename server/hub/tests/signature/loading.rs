//! Between the check and the end of loading nothing may change.

use std::fs;
use std::path::Path;

use rempart_hub::progress::{Event, Silent};
use rempart_hub::signature::{Error, Seal};

use super::{model, signed, trusting};

type Alteration = (&'static str, fn(&Path));

fn sealed(dir: &Path) -> Seal {
    signed(dir, "secp256r1.sig")
        .check(&trusting(&["secp256r1.pub"]), &Silent)
        .unwrap()
        .seal
}

#[test]
fn what_happens_to_files_while_they_are_loaded_is_noticed() {
    let alterations: [Alteration; 7] = [
        ("written", |dir| fs::write(dir.join("config.json"), "[]").unwrap()),
        ("written as it was", |dir| {
            fs::write(dir.join("config.json"), "{}").unwrap();
        }),
        ("replaced", |dir| {
            fs::write(dir.join("new"), "{}").unwrap();
            fs::rename(dir.join("new"), dir.join("config.json")).unwrap();
        }),
        ("taken away and put back", |dir| {
            fs::rename(dir.join("config.json"), dir.join("old")).unwrap();
            fs::write(dir.join("config.json"), "[]").unwrap();
            fs::rename(dir.join("old"), dir.join("config.json")).unwrap();
        }),
        ("added", |dir| {
            fs::write(dir.join("chat_template.jinja"), "").unwrap();
        }),
        ("another folder for a moment", |dir| {
            let aside = dir.with_extension("aside");
            fs::rename(dir, &aside).unwrap();
            fs::create_dir(dir).unwrap();
            fs::remove_dir(dir).unwrap();
            fs::rename(aside, dir).unwrap();
        }),
        ("dated back", |dir| {
            let path = dir.join("config.json");
            let was = fs::metadata(&path).unwrap().modified().unwrap();
            fs::write(&path, "[]").unwrap();
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(was).unwrap();
        }),
    ];
    for (what, alter) in alterations {
        let dir = model();
        let seal = sealed(dir.path());
        seal.check().unwrap();
        alter(dir.path());
        assert!(matches!(seal.check(), Err(Error::Changed { .. })), "{what}");
    }
}

#[test]
fn a_file_that_is_replaced_while_files_are_hashed_is_noticed() {
    let dir = model();
    let signed = signed(dir.path(), "secp256r1.sig");
    let replace = |event: Event<'_>| {
        if matches!(
            event,
            Event::Started {
                file: "README.md",
                ..
            }
        ) {
            fs::write(dir.path().join("new"), "{}").unwrap();
            fs::rename(dir.path().join("new"), dir.path().join("config.json")).unwrap();
        }
    };
    // Either it was hashed by then, and the seal is broken, or it is not the file that was listed.
    match signed.check(&trusting(&["secp256r1.pub"]), &replace) {
        Ok(checked) => assert!(matches!(checked.seal.check(), Err(Error::Changed { .. }))),
        Err(error) => assert!(error.to_string().contains("changed while"), "{error}"),
    }
}
