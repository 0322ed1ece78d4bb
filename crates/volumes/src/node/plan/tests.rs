use super::{super::record::Later, *};
use larder_host::{DeviceId, MountRoot};
use larder_model::{
    AccessType, Kind as FaultKind, MountAccess, VolumeCapability, volume::Attributes,
};
use rstest::rstest;

const STAGING: &str = "/staging";
const TARGET: &str = "/target";

fn terms(block: bool, mode: AccessMode, flags: &[&str]) -> Terms {
    let flags = flags.iter().map(|f| (*f).to_owned()).collect();
    let access = if block {
        AccessType::Block
    } else {
        AccessType::Mount(MountAccess { fs_type: String::new(), flags, group: None })
    };
    Terms::new(&VolumeCapability { access, mode }, &Attributes::new())
}
fn mount() -> Terms {
    terms(false, AccessMode::SingleNodeWriter, &[])
}
fn other_mount() -> Terms {
    terms(false, AccessMode::SingleNodeWriter, &["noatime"])
}
fn block() -> Terms {
    terms(true, AccessMode::SingleNodeWriter, &[])
}
fn staged(phase: Phase, path: &str, terms: Terms) -> Staged {
    let device = DeviceId { major: 7, minor: 3 };
    Staged {
        phase,
        path: path.into(),
        terms,
        attachment: Some(Attributes::new()),
        shows: Some(super::super::record::Shows::Device {
            path: "/dev/loop3".into(),
            number: device.into(),
        }),
        root: Some(MountRoot { mount: 9, device, inode: 2 }.into()),
        reader: false,
        encrypted: false,
        later: Later::new(),
    }
}

const EMPTY: Seen = Seen::Directory { empty: true };
const OURS: Seen = Seen::Ours { read_only: false };
const OURS_RO: Seen = Seen::Ours { read_only: true };
fn foreign() -> Seen {
    Seen::Foreign("ext4 /dev/sda1 (8:1)".to_owned())
}
fn obstacle() -> Seen {
    Seen::Obstacle("a symlink")
}

mod staging {
    use super::*;
    use StageStep::{
        Bind, Confirm, Connect, Group, Grow, Mount, NoteRaw, Prepare, Record, TakeBack,
    };

    const AFRESH: &[StageStep] = &[Record, Connect];
    const NOTHING: &[StageStep] = &[];
    const ANEW: &[StageStep] = &[TakeBack, Record, Connect];

    #[rstest]
    // Nothing known.
    #[case::clean(None, EMPTY, false, false, Ok(AFRESH))]
    #[case::files_below_stay_hidden(
        None, Seen::Directory { empty: false }, false, false, Ok(AFRESH)
    )]
    #[case::wiped_records(None, Seen::Unknown, false, false, Ok(AFRESH))]
    // In the way.
    #[case::no_directory(None, Seen::Missing, false, false, Err(FaultKind::Precondition))]
    #[case::a_file(None, Seen::File { empty: true }, false, false, Err(FaultKind::Precondition))]
    #[case::a_symlink(None, obstacle(), false, false, Err(FaultKind::Precondition))]
    #[case::a_foreign_mount(None, foreign(), false, false, Err(FaultKind::Precondition))]
    #[case::overmounted(
        Some((Phase::Staged, STAGING, mount())), foreign(), true, false,
        Err(FaultKind::Precondition)
    )]
    // Staged there.
    #[case::again(Some((Phase::Staged, STAGING, mount())), OURS, true, false, Ok(NOTHING))]
    #[case::again_in_use(Some((Phase::Staged, STAGING, mount())), OURS, true, true, Ok(NOTHING))]
    #[case::again_raw(Some((Phase::Staged, STAGING, block())), EMPTY, true, false, Ok(NOTHING))]
    #[case::other_terms(
        Some((Phase::Staged, STAGING, other_mount())), OURS, true, false, Err(FaultKind::Conflict)
    )]
    #[case::raw_before(
        Some((Phase::Staged, STAGING, block())), EMPTY, true, false, Ok(NOTHING)
    )]
    // The mount is gone.
    #[case::vanished(Some((Phase::Staged, STAGING, mount())), EMPTY, true, false, Ok(AFRESH))]
    #[case::vanished_in_use(Some((Phase::Staged, STAGING, mount())), EMPTY, true, true, Ok(AFRESH))]
    #[case::vanished_other_terms(
        Some((Phase::Staged, STAGING, other_mount())), EMPTY, true, false, Ok(ANEW)
    )]
    #[case::vanished_other_terms_in_use(
        Some((Phase::Staged, STAGING, other_mount())), EMPTY, true, true, Err(FaultKind::Conflict)
    )]
    // Cut half-way.
    #[case::cut_before_the_mount(
        Some((Phase::Staging, STAGING, mount())), EMPTY, true, false, Ok(AFRESH)
    )]
    #[case::cut_after_the_mount(
        Some((Phase::Staging, STAGING, mount())), OURS, true, false, Ok(AFRESH)
    )]
    #[case::cut_and_other_terms(
        Some((Phase::Staging, STAGING, other_mount())), OURS, true, false, Ok(ANEW)
    )]
    #[case::cut_while_unstaging(
        Some((Phase::Unstaging, STAGING, mount())), EMPTY, true, false, Ok(AFRESH)
    )]
    #[case::device_lost(Some((Phase::Staging, STAGING, mount())), EMPTY, false, false, Ok(AFRESH))]
    fn the_rest_of_the_steps_follows_from_what_is_seen(
        #[case] record: Option<(Phase, &str, Terms)>,
        #[case] at: Seen,
        #[case] connected: bool,
        #[case] published: bool,
        #[case] expected: std::result::Result<&[StageStep], FaultKind>,
    ) {
        let record = record.map(|(phase, path, terms)| staged(phase, path, terms));
        // Raw volumes are asked for raw again, in this table.
        let raw = record.as_ref().is_some_and(|r| r.terms.block);
        let wanted = if raw { block() } else { mount() };
        let seen =
            StageSeen { staged: record.as_ref(), at: &at, elsewhere: false, published, connected };
        let steps = stage(seen, Path::new(STAGING), &wanted);
        let steps = steps.map_err(|fault| fault.kind());
        assert_eq!(steps.as_deref().map_err(|kind| *kind), expected);
    }

    #[rstest]
    #[case::mounted_there(mount(), true, false, Err(FaultKind::Precondition))]
    #[case::published(mount(), false, true, Err(FaultKind::Precondition))]
    #[case::raw_and_connected(block(), false, false, Err(FaultKind::Precondition))]
    #[case::gone_there(mount(), false, false, Ok(ANEW))]
    fn staged_at_another_path_it_must_be_unstaged_first(
        #[case] was: Terms,
        #[case] elsewhere: bool,
        #[case] published: bool,
        #[case] expected: std::result::Result<&[StageStep], FaultKind>,
    ) {
        let record = staged(Phase::Staged, "/elsewhere", was);
        let seen =
            StageSeen { staged: Some(&record), at: &EMPTY, elsewhere, published, connected: true };
        let steps = stage(seen, Path::new(STAGING), &mount()).map_err(|fault| fault.kind());
        assert_eq!(steps.as_deref().map_err(|kind| *kind), expected);
    }

    #[test]
    fn a_raw_volume_is_not_mounted_while_it_is_staged_raw() {
        let record = staged(Phase::Staged, STAGING, block());
        let seen = StageSeen {
            staged: Some(&record),
            at: &EMPTY,
            elsewhere: false,
            published: false,
            connected: true,
        };
        let fault = stage(seen, Path::new(STAGING), &mount()).unwrap_err();
        assert_eq!(fault.kind(), FaultKind::Conflict);
        assert!(fault.to_string().contains("access type"), "{fault}");
    }

    const WRITER: SourceWanted = SourceWanted { block: false, reader: false, group: false };
    const READER: SourceWanted = SourceWanted { reader: true, ..WRITER };
    const RAW: SourceWanted = SourceWanted { block: true, ..WRITER };
    const GROUPED: SourceWanted = SourceWanted { group: true, ..WRITER };

    #[rstest]
    #[case(Kind::Device, EMPTY, WRITER, Ok(&[Prepare, Mount, Grow, Confirm][..]))]
    #[case(Kind::Device, EMPTY, READER, Ok(&[Prepare, Mount, Confirm][..]))]
    #[case(Kind::Device, EMPTY, GROUPED, Ok(&[Prepare, Mount, Grow, Group, Confirm][..]))]
    #[case(Kind::Device, EMPTY, SourceWanted { reader: true, ..GROUPED }, Ok(&[Prepare, Mount, Confirm][..]))]
    #[case(Kind::Device, EMPTY, RAW, Ok(&[NoteRaw, Confirm][..]))]
    #[case(Kind::Device, EMPTY, SourceWanted { reader: true, ..RAW }, Ok(&[Confirm][..]))]
    #[case(Kind::Directory, EMPTY, WRITER, Ok(&[Bind, Confirm][..]))]
    #[case(Kind::FileSystem, EMPTY, WRITER, Ok(&[Mount, Confirm][..]))]
    // Mounted already: nothing is mounted over it, and nothing is formatted.
    #[case(Kind::Device, OURS, WRITER, Ok(&[Grow, Confirm][..]))]
    #[case(Kind::Directory, OURS, GROUPED, Ok(&[Group, Confirm][..]))]
    #[case(Kind::FileSystem, OURS, WRITER, Ok(&[Confirm][..]))]
    #[case(Kind::Device, OURS_RO, READER, Ok(&[Confirm][..]))]
    #[case(Kind::Device, OURS_RO, WRITER, Err(FaultKind::Conflict))]
    #[case(Kind::Device, OURS, READER, Err(FaultKind::Conflict))]
    #[case(Kind::Device, OURS, RAW, Err(FaultKind::Conflict))]
    #[case(Kind::Device, foreign(), WRITER, Err(FaultKind::Precondition))]
    #[case(Kind::Device, foreign(), RAW, Err(FaultKind::Precondition))]
    #[case(Kind::Device, Seen::Unknown, WRITER, Err(FaultKind::Precondition))]
    #[case(Kind::Directory, EMPTY, RAW, Err(FaultKind::Precondition))]
    #[case(Kind::FileSystem, EMPTY, RAW, Err(FaultKind::Precondition))]
    fn a_connected_source_is_mounted_once_in_its_own_way(
        #[case] kind: Kind,
        #[case] at: Seen,
        #[case] wanted: SourceWanted,
        #[case] expected: std::result::Result<&[StageStep], FaultKind>,
    ) {
        let steps = source(SourceSeen { kind, at: &at }, wanted, Path::new(STAGING));
        let steps = steps.map_err(|fault| fault.kind());
        assert_eq!(steps.as_deref().map_err(|kind| *kind), expected);
    }
}

mod publishing {
    use super::*;
    use PublishStep::{Bind, Group, MakeTarget, Record};

    const AFRESH: &[PublishStep] = &[Record, MakeTarget, Bind];

    fn publication(target: &str, terms: Terms, readonly: bool) -> Publication {
        Publication { target: target.into(), terms, readonly, later: Later::new() }
    }
    fn with_mode(mode: AccessMode) -> Publication {
        publication(TARGET, terms(false, mode, &[]), false)
    }
    fn plan(
        staged: Option<&Staged>,
        stands: bool,
        at: &Seen,
        published: Option<&Publication>,
        others: &[&Publication],
        wanted: &Publication,
    ) -> std::result::Result<Vec<PublishStep>, FaultKind> {
        let seen = PublishSeen { staged, stands, at, published, others };
        publish(seen, Path::new(STAGING), wanted).map_err(|fault| fault.kind())
    }

    #[rstest]
    #[case::clean(Seen::Missing, None, Ok(AFRESH))]
    #[case::empty_directory(EMPTY, None, Ok(AFRESH))]
    #[case::again(OURS, Some((mount(), false)), Ok(&[][..]))]
    #[case::cut_before_the_bind(EMPTY, Some((mount(), false)), Ok(AFRESH))]
    #[case::cut_before_the_bind_and_other_terms(EMPTY, Some((other_mount(), true)), Ok(AFRESH))]
    #[case::other_readonly(OURS_RO, Some((mount(), true)), Err(FaultKind::Conflict))]
    #[case::other_terms(OURS, Some((other_mount(), false)), Err(FaultKind::Conflict))]
    #[case::wiped_records(OURS, None, Ok(&[Record][..]))]
    #[case::wiped_records_other_readonly(OURS_RO, None, Err(FaultKind::Conflict))]
    #[case::foreign_mount(foreign(), None, Err(FaultKind::Precondition))]
    #[case::unknown_mount(Seen::Unknown, None, Err(FaultKind::Precondition))]
    #[case::symlink(obstacle(), None, Err(FaultKind::Precondition))]
    #[case::file(Seen::File { empty: true }, None, Err(FaultKind::Precondition))]
    #[case::files_inside(Seen::Directory { empty: false }, None, Err(FaultKind::Precondition))]
    fn a_target_is_made_once_and_nothing_else_is_hidden(
        #[case] at: Seen,
        #[case] record: Option<(Terms, bool)>,
        #[case] expected: std::result::Result<&[PublishStep], FaultKind>,
    ) {
        let staged = staged(Phase::Staged, STAGING, mount());
        let record = record.map(|(terms, readonly)| publication(TARGET, terms, readonly));
        let wanted = publication(TARGET, mount(), false);
        let steps = plan(Some(&staged), true, &at, record.as_ref(), &[], &wanted);
        assert_eq!(steps.as_deref().map_err(|kind| *kind), expected);
    }

    #[rstest]
    #[case::never(None, true)]
    #[case::half_done(Some((Phase::Staging, STAGING)), true)]
    #[case::being_taken_back(Some((Phase::Unstaging, STAGING)), true)]
    #[case::elsewhere(Some((Phase::Staged, "/elsewhere")), true)]
    #[case::mount_gone(Some((Phase::Staged, STAGING)), false)]
    fn what_is_not_staged_is_not_published(
        #[case] record: Option<(Phase, &str)>,
        #[case] stands: bool,
    ) {
        let record = record.map(|(phase, path)| staged(phase, path, mount()));
        let wanted = publication(TARGET, mount(), false);
        let steps = plan(record.as_ref(), stands, &Seen::Missing, None, &[], &wanted);
        assert_eq!(steps, Err(FaultKind::Precondition));
    }

    #[test]
    fn a_raw_volume_is_bound_over_a_file_and_a_mounted_one_over_a_directory() {
        let raw = staged(Phase::Staged, STAGING, block());
        let wanted = publication(TARGET, block(), false);
        let file = Seen::File { empty: true };
        let steps = |at: &Seen| plan(Some(&raw), true, at, None, &[], &wanted);
        assert_eq!(steps(&Seen::Missing).unwrap(), AFRESH);
        assert_eq!(steps(&file).unwrap(), AFRESH);
        assert_eq!(steps(&EMPTY), Err(FaultKind::Precondition));
        assert_eq!(steps(&OURS).unwrap(), [Record]);
        let as_mount = publication(TARGET, mount(), false);
        let mixed = plan(Some(&raw), true, &Seen::Missing, None, &[], &as_mount);
        assert_eq!(mixed, Err(FaultKind::Precondition));
        let mounted = staged(Phase::Staged, STAGING, mount());
        let mixed = plan(Some(&mounted), true, &Seen::Missing, None, &[], &wanted);
        assert_eq!(mixed, Err(FaultKind::Precondition));
    }

    #[test]
    fn the_group_is_given_before_a_workload_sees_the_volume_unless_it_is_read_only() {
        let staged_ = staged(Phase::Staged, STAGING, mount());
        let mut wanted = publication(TARGET, mount(), false);
        wanted.terms.group = Some(5);
        let steps = plan(Some(&staged_), true, &Seen::Missing, None, &[], &wanted).unwrap();
        assert_eq!(steps, [Record, MakeTarget, Group, Bind]);
        wanted.readonly = true;
        let steps = plan(Some(&staged_), true, &Seen::Missing, None, &[], &wanted).unwrap();
        assert_eq!(steps, AFRESH);
    }

    #[test]
    fn second_targets_follow_the_csi_table_but_for_single_node_writer() {
        use AccessMode::{
            MultiNodeMultiWriter, MultiNodeReaderOnly, MultiNodeSingleWriter,
            SingleNodeMultiWriter, SingleNodeReaderOnly, SingleNodeSingleWriter, SingleNodeWriter,
        };
        let table = [
            (MultiNodeReaderOnly, true),
            (MultiNodeSingleWriter, true),
            (MultiNodeMultiWriter, true),
            (SingleNodeMultiWriter, true),
            (SingleNodeSingleWriter, false),
            // The deviation: kubelet does this.
            (SingleNodeWriter, true),
            (SingleNodeReaderOnly, false),
        ];
        assert_eq!(table.len(), AccessMode::ALL.len());
        let staged_ = staged(Phase::Staged, STAGING, mount());
        for (mode, allowed) in table {
            let wanted = with_mode(mode);
            let other = Publication { target: "/other".into(), ..with_mode(mode) };
            for differs in [false, true] {
                // Whether the other arguments are equal changes nothing at another target.
                let other = Publication { readonly: differs, ..other.clone() };
                let steps = plan(Some(&staged_), true, &Seen::Missing, None, &[&other], &wanted);
                match steps {
                    Ok(steps) => assert!(allowed && steps == AFRESH, "{mode}"),
                    Err(kind) => {
                        assert!(!allowed && kind == FaultKind::Precondition, "{mode}: {kind:?}");
                    }
                }
            }
            // The same target again is fine in every mode.
            let again = plan(Some(&staged_), true, &OURS, Some(&wanted), &[], &wanted);
            assert_eq!(again.unwrap(), [], "{mode}");
        }
        // Who has it alone keeps it alone, whatever the next one says.
        let alone = Publication { target: "/other".into(), ..with_mode(SingleNodeSingleWriter) };
        let wanted = with_mode(SingleNodeMultiWriter);
        let steps = plan(Some(&staged_), true, &Seen::Missing, None, &[&alone], &wanted);
        assert_eq!(steps, Err(FaultKind::Precondition));
    }
}

mod taking_back {
    use super::*;

    #[rstest]
    #[case(OURS, true, Ok(&[UnpublishStep::Unmount, UnpublishStep::RemoveTarget, UnpublishStep::Forget][..]))]
    #[case(OURS, false, Ok(&[UnpublishStep::Unmount, UnpublishStep::RemoveTarget, UnpublishStep::Forget][..]))]
    #[case(EMPTY, true, Ok(&[UnpublishStep::RemoveTarget, UnpublishStep::Forget][..]))]
    #[case(EMPTY, false, Ok(&[UnpublishStep::RemoveTarget, UnpublishStep::Forget][..]))]
    #[case(Seen::File { empty: true }, true, Ok(&[UnpublishStep::RemoveTarget, UnpublishStep::Forget][..]))]
    #[case(Seen::Missing, true, Ok(&[UnpublishStep::Forget][..]))]
    #[case(Seen::Missing, false, Ok(&[UnpublishStep::Forget][..]))]
    #[case(Seen::Directory { empty: false }, true, Err(FaultKind::Precondition))]
    #[case(Seen::Directory { empty: false }, false, Ok(&[][..]))]
    #[case(Seen::File { empty: false }, false, Ok(&[][..]))]
    #[case(foreign(), true, Err(FaultKind::Precondition))]
    #[case(foreign(), false, Err(FaultKind::Precondition))]
    #[case(Seen::Unknown, false, Err(FaultKind::Precondition))]
    #[case(obstacle(), true, Err(FaultKind::Precondition))]
    fn a_target_goes_unless_it_holds_what_is_not_ours(
        #[case] at: Seen,
        #[case] recorded: bool,
        #[case] expected: std::result::Result<&[UnpublishStep], FaultKind>,
    ) {
        let steps = unpublish(&at, recorded, Path::new(TARGET)).map_err(|fault| fault.kind());
        assert_eq!(steps.as_deref().map_err(|kind| *kind), expected);
    }

    use UnstageStep::{Disconnect, Forget, ProveUnused, Record, Unmount};
    const ALL: &[UnstageStep] = &[Record, Unmount, ProveUnused, Disconnect, Forget];

    #[rstest]
    #[case::staged(Some((Phase::Staged, STAGING)), OURS, false, Ok(ALL))]
    #[case::raw_or_vanished(
        Some((Phase::Staged, STAGING)), EMPTY, false,
        Ok(&[Record, ProveUnused, Disconnect, Forget][..])
    )]
    #[case::directory_gone(
        Some((Phase::Staged, STAGING)), Seen::Missing, false,
        Ok(&[Record, ProveUnused, Disconnect, Forget][..])
    )]
    #[case::half_staged(Some((Phase::Staging, STAGING)), OURS, false, Ok(ALL))]
    #[case::cut_while_unstaging(
        Some((Phase::Unstaging, STAGING)), EMPTY, false,
        Ok(&[Record, ProveUnused, Disconnect, Forget][..])
    )]
    #[case::wiped_records(None, OURS, false, Ok(&[Unmount, ProveUnused, Disconnect, Forget][..]))]
    #[case::never_staged(None, EMPTY, false, Ok(&[ProveUnused, Disconnect, Forget][..]))]
    #[case::not_there(Some((Phase::Staged, "/elsewhere")), EMPTY, false, Ok(&[][..]))]
    #[case::not_there_although_published(
        Some((Phase::Staged, "/elsewhere")), EMPTY, true, Ok(&[][..])
    )]
    #[case::a_target(
        Some((Phase::Staged, "/elsewhere")), OURS, false, Err(FaultKind::Precondition)
    )]
    #[case::published(Some((Phase::Staged, STAGING)), OURS, true, Err(FaultKind::Precondition))]
    #[case::wiped_and_published(None, OURS, true, Err(FaultKind::Precondition))]
    #[case::foreign(None, foreign(), false, Err(FaultKind::Precondition))]
    #[case::overmounted(
        Some((Phase::Staged, STAGING)), foreign(), false, Err(FaultKind::Precondition)
    )]
    #[case::unknown(None, Seen::Unknown, false, Err(FaultKind::Precondition))]
    #[case::symlink(None, obstacle(), false, Err(FaultKind::Precondition))]
    fn a_device_is_let_go_last_and_only_when_no_workload_has_it(
        #[case] record: Option<(Phase, &str)>,
        #[case] at: Seen,
        #[case] published: bool,
        #[case] expected: std::result::Result<&[UnstageStep], FaultKind>,
    ) {
        let record = record.map(|(phase, path)| staged(phase, path, mount()));
        let targets = [Path::new("/pod/target")];
        let published = if published { &targets[..] } else { &[] };
        let seen = UnstageSeen { staged: record.as_ref(), at: &at, published };
        let steps = unstage(seen, Path::new(STAGING)).map_err(|fault| fault.kind());
        assert_eq!(steps.as_deref().map_err(|kind| *kind), expected);
    }
}
