//! A real SIGKILL at every step of an encrypted volume's life: the repeated call mends everything, and no
//! data is lost.

use crate::{
    keys::opens,
    lab::{KEY, Lab, MIB, NEW_KEY, SIZE, key, map},
    life::total,
};
use std::{fs, path::Path, time::Duration};
use tonic::Status;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The first: header, file system.
    FirstStage,
    /// A later one.
    Stage,
    NodeExpand,
    Unstage,
    /// At a staging.
    Rotate,
    /// While it is in use.
    RotateInUse,
}

/// One volume through all kills of a sweep.
struct Swept {
    lab: Lab,
    volume: String,
    /// What opens it, and what shall.
    keys: [&'static str; 2],
    size: i64,
    /// How large its file system was.
    total: u64,
}

impl Swept {
    async fn call(&self, step: Step) -> Result<(), Status> {
        let (lab, volume) = (&self.lab, &self.volume);
        let [old, new] = self.keys;
        match step {
            Step::FirstStage | Step::Stage => lab.stage(volume, key(old)).await,
            Step::NodeExpand => lab.node_expand(volume, key(old)).await,
            Step::Unstage => lab.unstage(volume).await,
            Step::Rotate | Step::RotateInUse => {
                lab.stage(volume, map(&[("passphrase", new), ("oldPassphrase", old)])).await
            }
        }
    }

    /// What comes before the first kill: a volume with data, as the step finds it.
    async fn begin(&self, step: Step) {
        let (lab, volume) = (&self.lab, &self.volume);
        lab.create(volume).await;
        if step == Step::FirstStage {
            return;
        }
        write(lab, &lab.open(volume, self.keys[0]).await);
        match step {
            Step::FirstStage | Step::RotateInUse | Step::NodeExpand => {}
            Step::Unstage => lab.unpublish(volume).await.unwrap(),
            Step::Stage | Step::Rotate => lab.close(volume).await,
        }
    }

    /// Proves that the step is done, that the data is there, and leaves the volume for the next kill.
    async fn prove(&mut self, step: Step, why: &str) {
        let (lab, volume) = (&self.lab, self.volume.as_str());
        match step {
            Step::FirstStage => {
                write(lab, &lab.publish(volume).await.unwrap());
                lab.close(volume).await;
                check(lab, &lab.open(volume, self.keys[0]).await, why);
                lab.close(volume).await;
                lab.delete(volume).await;
                assert!(lab.is_clean(), "{why}");
            }
            Step::Stage => {
                check(lab, &lab.publish(volume).await.unwrap(), why);
                lab.close(volume).await;
                assert!(lab.opened().is_empty(), "{why}: it is open");
            }
            Step::NodeExpand => {
                check(lab, &lab.target(volume), why);
                let total = total(&lab.target(volume));
                assert!(total > self.total, "{why}: it did not grow");
                self.total = total;
            }
            Step::Unstage => {
                assert!(lab.opened().is_empty(), "{why}: it is open");
                check(lab, &lab.open(volume, self.keys[0]).await, why);
                lab.unpublish(volume).await.unwrap();
            }
            Step::Rotate | Step::RotateInUse => {
                let [old, new] = self.keys;
                let image = lab.image(volume);
                assert!(!opens(&image, old), "{why}: the old passphrase opens it");
                assert!(opens(&image, new), "{why}: the new passphrase does not open it");
                check(lab, &lab.publish(volume).await.unwrap(), why);
                if step == Step::Rotate {
                    lab.close(volume).await;
                }
                self.keys = [new, old];
            }
        }
    }

    /// Nothing of it is left.
    async fn end(&self, step: Step) {
        let (lab, volume) = (&self.lab, self.volume.as_str());
        match step {
            Step::FirstStage => return,
            Step::Unstage => lab.unstage(volume).await.unwrap(),
            Step::NodeExpand | Step::RotateInUse => lab.close(volume).await,
            Step::Stage | Step::Rotate => {}
        }
        lab.delete(volume).await;
        assert!(lab.is_clean(), "{step:?}");
    }
}

fn write(lab: &Lab, target: &Path) {
    if lab.block {
        use std::io::Write;
        let mut device = fs::File::options().write(true).open(target).unwrap();
        device.write_all(b"precious").unwrap();
        device.sync_all().unwrap();
    } else {
        fs::write(target.join("data"), "precious").unwrap();
        fs::File::open(target.join("data")).unwrap().sync_all().unwrap();
    }
}

fn check(lab: &Lab, target: &Path, why: &str) {
    use std::io::Read;
    let mut read = [0; 8];
    let file = if lab.block { target.to_owned() } else { target.join("data") };
    fs::File::open(file).unwrap().read_exact(&mut read).unwrap();
    assert_eq!(&read, b"precious", "{why}");
}

async fn sweep(block: bool, step: Step) {
    let lab = Lab::new(block).await;
    let volume = "v1".to_owned();
    let mut swept = Swept { lab, volume, keys: [KEY, NEW_KEY], size: SIZE, total: 0 };
    swept.begin(step).await;
    if step == Step::NodeExpand {
        swept.total = total(&swept.lab.target(&swept.volume));
    }
    let mut crashes = 0;
    for n in 1.. {
        assert!(n < 100, "{step:?} has no end");
        let why = format!("{step:?} was killed at step {n}");
        if step == Step::NodeExpand {
            swept.size += 32 * MIB;
            swept.lab.expand(&swept.volume, swept.size).await.unwrap();
        }
        swept.lab.server.kill();
        swept.lab.server = swept.lab.site.server_that_crashes_at(n);
        let crashed = !swept.lab.server.ready().await || swept.call(step).await.is_err();
        if crashed {
            crashes += 1;
            wait_for_end(&mut swept.lab).await;
        }
        if matches!(step, Step::Rotate | Step::RotateInUse) {
            let image = swept.lab.image(&swept.volume);
            let opened = swept.keys.iter().any(|key| opens(&image, key));
            assert!(opened, "{why}: nothing opens it");
        }
        swept.lab.restart().await;
        swept.call(step).await.unwrap_or_else(|e| panic!("{why}; then: {e}"));
        swept.prove(step, &why).await;
        if !crashed {
            break;
        }
        if step == Step::FirstStage {
            swept.volume = format!("v{}", n + 1);
            swept.begin(step).await;
        }
    }
    swept.end(step).await;
    assert!(crashes > 1, "{step:?} was never killed: the program lacks its crash points");
}

async fn wait_for_end(lab: &mut Lab) {
    for _ in 0..3000 {
        if lab.server.has_ended() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the call failed, but the server was not killed");
}

macro_rules! sweeps {
    ($($name:ident: $block:literal, $step:ident;)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            sweep($block, Step::$step).await;
        })*
    };
}

sweeps! {
    a_new_mounted_volume_survives_kills_in_stage: false, FirstStage;
    a_new_raw_volume_survives_kills_in_stage: true, FirstStage;
    a_volume_with_data_survives_kills_in_stage: false, Stage;
    a_raw_volume_with_data_survives_kills_in_stage: true, Stage;
    a_volume_survives_kills_in_node_expand: false, NodeExpand;
    a_volume_survives_kills_in_unstage: false, Unstage;
    a_raw_volume_survives_kills_in_unstage: true, Unstage;
    a_volume_survives_kills_in_rotation_at_stage: false, Rotate;
    a_volume_survives_kills_in_rotation_while_it_is_used: false, RotateInUse;
}
