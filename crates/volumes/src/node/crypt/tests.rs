use super::{opened::device_name, *};
use larder_model::volume::FormatState as S;
use larder_model::{DriverName, Kind};

const EXT4: FsType = FsType::Ext4;
const ID: Uuid = Uuid::from_u128(7);

fn all_states() -> Vec<S> {
    let mut all = vec![S::Unformatted, S::Foreign, S::Raw, S::Encrypting { luks: ID }];
    all.extend([S::Formatting { fs: EXT4 }, S::Formatted { fs: EXT4 }]);
    for inside in [
        Inside::Formatting { fs: EXT4 },
        Inside::Formatted { fs: EXT4 },
        Inside::Foreign,
        Inside::Raw,
    ] {
        all.push(S::Encrypted { luks: ID, inside });
    }
    all
}

#[test]
fn a_header_is_made_only_on_proven_blank_devices_or_over_our_own_remains() {
    let (other, others) = (Uuid::from_u128(8), Found::Other("LVM2_member".to_owned()));
    let luks = Found::Other(LUKS.to_owned());
    let data = Found::Other("data at byte 7".to_owned());
    let found = [
        (Found::Blank, None),
        (Found::FileSystem(EXT4), Some(ID)),
        (luks.clone(), Some(ID)),
        (luks.clone(), Some(other)),
        (luks, None),
        (data.clone(), None),
        (others, None),
    ];
    let mut made = 0;
    for state in all_states() {
        for (found, header) in &found {
            assert!(
                !matches!(decide(state, found, *header, true), Ok(Decision::Make { .. })),
                "{state:?} {found:?}: a reader encrypts"
            );
            let Ok(Decision::Make { luks, over }) = decide(state, found, *header, false) else {
                continue;
            };
            made += 1;
            let wanted = match state {
                S::Encrypting { luks } => (Some(luks), Over::Remains),
                S::Unformatted => (None, Over::New),
                S::Foreign => (None, Over::Unread),
                state => panic!("{state:?} is encrypted anew"),
            };
            assert_eq!((luks, over), wanted);
            let remains =
                *found == data || *header == Some(ID) && !matches!(found, Found::FileSystem(_));
            let may = *found == Found::Blank || over == Over::Remains && remains;
            assert!(may, "{state:?} {found:?} {header:?}");
        }
    }
    assert_eq!(made, 3 + 1 + 1);
}

#[test]
fn only_what_is_luks_is_opened_and_a_refusal_says_what_was_found() {
    let luks = Found::Other(LUKS.to_owned());
    for state in all_states() {
        let opened = matches!(decide(state, &luks, Some(ID), true), Ok(Decision::Open { .. }));
        let may = matches!(state, S::Encrypted { .. } | S::Foreign | S::Raw);
        assert_eq!(opened, may, "{state:?}");
    }
    for (state, found, kind, word) in [
        (S::Unformatted, Found::FileSystem(EXT4), Kind::Precondition, "ext4"),
        (S::Formatted { fs: EXT4 }, Found::FileSystem(EXT4), Kind::Precondition, "ext4"),
        (S::Unformatted, luks.clone(), Kind::Precondition, "LUKS"),
        (S::Encrypting { luks: ID }, luks, Kind::Precondition, "LUKS"),
        (S::Raw, Found::Blank, Kind::Precondition, "raw block device"),
        (
            S::Encrypted { luks: ID, inside: Inside::Raw },
            Found::Blank,
            Kind::Corrupt,
            "header is gone",
        ),
    ] {
        let fault = decide(state, &found, None, false).unwrap_err();
        assert_eq!(fault.kind(), kind, "{state:?} {found:?}");
        assert!(fault.to_string().contains(word) && fault.hint_text().is_some(), "{fault}");
    }
    for state in all_states() {
        let encrypted = matches!(state, S::Encrypted { .. } | S::Encrypting { .. });
        assert_eq!(refuse_encrypted(state).is_err(), encrypted, "{state:?}");
    }
}

#[test]
fn the_states_are_written_in_one_form() {
    let written = |state: S| serde_json::to_value(state).unwrap();
    let luks = "00000000-0000-0000-0000-000000000007";
    assert_eq!(
        written(S::Encrypting { luks: ID }),
        serde_json::json!({ "state": "encrypting", "luks": luks })
    );
    for (inside, form) in [
        (Inside::Raw, serde_json::json!({ "state": "raw" })),
        (Inside::Foreign, serde_json::json!({ "state": "foreign" })),
        (Inside::Formatted { fs: EXT4 }, serde_json::json!({ "state": "formatted", "fs": "ext4" })),
    ] {
        let state = S::Encrypted { luks: ID, inside };
        let form = serde_json::json!({ "state": "encrypted", "luks": luks, "inside": form });
        assert_eq!(written(state), form);
        assert_eq!(serde_json::from_value::<S>(form).unwrap(), state);
    }
}

#[test]
fn names_are_told_apart_and_fit() {
    let driver: DriverName = "a.csi.larder.dev".parse().unwrap();
    let id = |text: &str| VolumeId(text.parse().unwrap());
    let name = device_name(&driver, &id("default/pvc-1"));
    assert!(name.starts_with("larder-default_pvc-1-"), "{name}");
    let other: DriverName = "b.csi.larder.dev".parse().unwrap();
    assert_ne!(name, device_name(&other, &id("default/pvc-1")));
    let long = device_name(&driver, &id(&format!("{}/{}", "p".repeat(60), "v".repeat(60))));
    assert!(long.len() <= luks::LONGEST_NAME, "{long}");
}

#[test]
fn a_missing_passphrase_is_named() {
    let secrets = Secrets::new([("other".to_owned(), "x".to_owned())]);
    let Err(fault) = Keys::of(&secrets) else { panic!("it has no passphrase") };
    assert_eq!(fault.kind(), Kind::Invalid);
    assert!(fault.to_string().contains("no key passphrase"), "{fault}");
}
