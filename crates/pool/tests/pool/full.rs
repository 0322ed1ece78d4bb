//! Full disks: every call that finds no space says so, leaves nothing, and works when there is some.

use crate::filler::Filler;
use crate::support::{Bench, Calls, copied, sized, snapshot, spec, volume};
use larder_host::{Host, LoopRequest, image};
use larder_model::{
    Bytes, FsType, Kind, Result,
    volume::{ContentSource, FormatState},
};
use larder_pool::LocalBackend;
use rstest::rstest;
use std::path::Path;

type Backend = LocalBackend<crate::support::FakeMedium>;

#[derive(Debug, Clone, Copy)]
enum Call {
    Create,
    Clone,
    Restore,
    Cut,
    Grow,
}

impl Call {
    async fn run(self, backend: &Backend) -> Result<()> {
        match self {
            Self::Create => backend.create(&spec("a/new")).await.map(drop),
            Self::Clone => {
                let clone = copied("a/new", ContentSource::Volume(volume("a/v")));
                backend.create(&clone).await.map(drop)
            }
            Self::Restore => {
                let restore = copied("a/new", ContentSource::Snapshot(snapshot("a/s")));
                backend.create(&restore).await.map(drop)
            }
            Self::Cut => backend.cut("a/new", "a/v").await.map(drop),
            Self::Grow => backend.grow("a/v", Bytes::mib(64)).await.map(drop),
        }
    }
}

async fn prepared(bench: &Bench) -> Backend {
    let backend = bench.start().await;
    backend.create(&sized("a/v", Bytes::mib(8), None)).await.unwrap();
    backend.cut("a/s", "a/v").await.unwrap();
    backend
}

/// One attempt on a file system with a little left; whether it was too little.
async fn attempt(bench: &Bench, call: Call, fill: impl FnOnce(&Path) -> Filler) -> bool {
    let backend = prepared(bench).await;
    let before = bench.state();
    let filler = fill(&bench.pool("a"));
    let result = call.run(&backend).await;
    if let Err(fault) = &result {
        assert_eq!(fault.kind(), Kind::Exhausted, "{call:?}: {fault}");
        assert_eq!(bench.state(), before, "{call:?}: {fault}");
    }
    filler.remove();
    call.run(&backend).await.unwrap();
    let after = bench.state();
    drop(backend);
    let _backend = bench.start().await;
    assert_eq!(bench.state(), after);
    result.is_err()
}

#[rstest]
#[tokio::test]
async fn without_space_at_any_point_nothing_is_left(
    #[values(Call::Create, Call::Clone, Call::Restore, Call::Cut, Call::Grow)] call: Call,
    #[values(false, true)] inodes: bool,
) {
    let mut refused = 0;
    for left in 0..20 {
        let bench = Bench::default();
        bench.knobs().weight = 3 * 4096;
        bench.mount("tmpfs", "tmpfs", &bench.pool("a"), &["size=512k", "nr_inodes=200"]);
        let exhausted = attempt(&bench, call, |dir| {
            if inodes { Filler::inodes(dir, left) } else { Filler::space(dir, left as u64) }
        });
        if !exhausted.await {
            break;
        }
        refused += 1;
    }
    let least = if matches!(call, Call::Grow) { 2 } else { 3 };
    assert!(refused >= least || (inodes && refused > 0), "refused {refused} times");
    assert!(refused < 20, "in the end there was enough");
}

#[rstest]
#[tokio::test]
async fn a_full_disk_can_be_emptied_through_us(
    #[values(FsType::Ext4, FsType::Xfs, FsType::Btrfs)] fs: FsType,
) {
    let bench = Bench::default();
    let size = if fs == FsType::Ext4 { Bytes::mib(16) } else { Bytes::mib(320) };
    let file = bench.path().join("disk.img");
    image::create_sparse(&file, size).unwrap();
    let host = Host::real();
    let request = LoopRequest {
        image: file,
        read_only: false,
        autoclear: true,
        direct_io: false,
        sector_size: 512,
    };
    let device = host.loops.attach(&request).unwrap();
    host.filesystems.make(&device.path, fs, &[]).unwrap();
    let source = device.path.display().to_string();
    bench.mount(fs.as_str(), &source, &bench.pool("a"), &[]);
    drop(device);
    bench.knobs().weight = 1 << 20;
    let backend = prepared(&bench).await;
    let filler = Filler::space(&bench.pool("a"), 0);
    let fault = backend.create(&spec("a/new")).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Exhausted, "{fault}");
    let fault = backend.cut("a/t", "a/v").await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Exhausted, "{fault}");
    assert_eq!(bench.state().len(), 2);
    // Neither reading nor a restart needs space.
    backend.get("a/v").await.unwrap();
    drop(backend);
    let backend = bench.start().await;
    assert_eq!(backend.ids().await, ["a/v"]);
    backend.uncut("a/s").await.unwrap();
    backend.delete("a/v").await.unwrap();
    assert!(bench.state().is_empty());
    filler.remove();
    backend.create(&spec("a/new")).await.unwrap();
}

#[tokio::test]
async fn a_record_that_cannot_be_written_stays_as_it_was() {
    use larder_model::Connect;
    let bench = Bench::default();
    bench.mount("tmpfs", "tmpfs", &bench.pool("a"), &["size=512k"]);
    let backend = prepared(&bench).await;
    let before = backend.format_state(&volume("a/v")).await.unwrap();
    let filler = Filler::space(&bench.pool("a"), 0);
    let fault = backend.set_format_state(&volume("a/v"), FormatState::Raw).await.unwrap_err();
    assert_eq!(fault.kind(), Kind::Exhausted, "{fault}");
    assert_eq!(backend.format_state(&volume("a/v")).await.unwrap(), before);
    drop(backend);
    let backend = bench.start().await;
    assert_eq!(backend.format_state(&volume("a/v")).await.unwrap(), before);
    filler.remove();
    backend.set_format_state(&volume("a/v"), FormatState::Raw).await.unwrap();
    assert_eq!(bench.state().len(), 2);
}
