//! The claim's part of the chain.

use super::{
    Snapshot, Step, full, places, pod,
    snapshot::{
        annotation, at, bytes, condition, created, deleted, first, list, name, text, texts,
    },
    volume,
};
use crate::{
    api::Key,
    cache::{PROVISIONER, PROVISIONER_BETA},
    provision::{decide::SELECTED_NODE, source},
    secrets::{self, Names, Use},
};
use serde_json::Value;
use std::collections::BTreeMap;

const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const IN_USE: &str = "kubernetes.io/pvc-protection";
const SNAPSHOT: &str = "snapshot.storage.kubernetes.io/pvc-as-source-protection";
/// After so many seconds without a word nobody is at work.
const SILENCE: i64 = 120;

/// The claim, and what it is bound to.
pub(super) fn walk(see: &Snapshot, claim: &str, out: &mut Vec<Step>) {
    let object = format!("pvc/{claim}");
    let Some(found) = see.claim(claim) else {
        quotas(see, out);
        let missing = Step::stuck("claim", "claim-missing", object)
            .what(format!("there is no PersistentVolumeClaim {}", full(&see.namespace, claim)))
            .mend("make it, or correct the name in the pod");
        out.push(missing);
        return;
    };
    let class = match found.pointer("/spec/storageClassName").and_then(Value::as_str) {
        None => "no class".to_owned(),
        Some("") => "no class (static volumes only)".to_owned(),
        Some(class) => format!("class {class}"),
    };
    let size = text(found, "/spec/resources/requests/storage");
    let (phase, modes) =
        (text(found, "/status/phase"), texts(found, "/spec/accessModes").join(", "));
    let what = format!("{phase}: asks for {size}, {modes}, {class}");
    out.push(Step::ok("claim", &object, what).since(created(found)));
    deletion(see, found, out);
    match phase {
        "Bound" => {
            let bound = text(found, "/spec/volumeName");
            match see.volume(bound) {
                Some(volume) => volume::walk(see, volume, None, out),
                None => out.push(
                    Step::stuck("volume", "volume-missing", format!("pv/{bound}"))
                        .what("the claim is bound to it, and it is not there")
                        .mend("restore the PersistentVolume from a backup (`larder adopt` prints it from the pool), or delete the claim"),
                ),
            }
            volume::grow(see, found, out);
            volume::modify(see, found, out);
        }
        "Lost" => out.push(
            Step::stuck("volume", "volume-missing", format!("pv/{}", text(found, "/spec/volumeName")))
                .what("the claim has lost its PersistentVolume: somebody deleted the object")
                .mend("restore the PersistentVolume (`larder adopt` prints it from the pool), or delete the claim"),
        ),
        _ => pending(see, found, out),
    }
}

/// Who holds a deletion up.
fn deletion(see: &Snapshot, claim: &Value, out: &mut Vec<Step>) {
    let Some(since) = deleted(claim) else { return };
    let (claim_name, object) = (name(claim), format!("pvc/{}", name(claim)));
    for finalizer in texts(claim, "/metadata/finalizers") {
        let step = Step::stuck("deletion", "finalizer", &object).since(Some(since));
        out.push(match finalizer {
            IN_USE => {
                let users: Vec<_> = see.users(claim_name).map(name).collect();
                if users.is_empty() {
                    Step::waiting("deletion", "finalizer", &object).since(Some(since)).what(
                        "its deletion was asked for; no pod uses it any more, and kube-controller-manager lets it go next",
                    )
                } else {
                    step.what(format!("its deletion waits for the pods that use it: {}", users.join(", ")))
                        .mend(format!("kubectl -n {} delete pod {}", see.namespace, users.join(" ")))
                }
            }
            source::CLONE_FINALIZER => {
                let copies: Vec<_> = see.claims.iter().filter(|other| {
                    text(other, "/status/phase") == "Pending"
                        && text(other, "/spec/dataSource/kind") == "PersistentVolumeClaim"
                        && text(other, "/spec/dataSource/name") == claim_name
                }).map(name).collect();
                step.what(format!("its deletion waits for the claims that are made from it: {}", listed(&copies)))
                    .mend("look why these are pending, or delete them")
            }
            SNAPSHOT => step
                .what("its deletion waits for a snapshot that is being cut of it")
                .mend(format!("kubectl -n {} get volumesnapshots", see.namespace)),
            other => step
                .what(format!("its deletion waits for whoever set finalizer {other}"))
                .mend("find out whose it is, and why that does not run; take it off by hand only when its owner is gone for good"),
        });
    }
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "none by now".to_owned() } else { names.join(", ") }
}

/// Quotas that leave no room for a claim: then it cannot even be made.
fn quotas(see: &Snapshot, out: &mut Vec<Step>) {
    for quota in &see.quotas {
        let hard = quota.pointer("/status/hard").and_then(Value::as_object);
        for key in hard.into_iter().flat_map(|hard| hard.keys()) {
            let concerns = key == "persistentvolumeclaims"
                || key.ends_with("requests.storage")
                || key.ends_with("storageclass.storage.k8s.io/persistentvolumeclaims");
            let pointer = |part: &str| {
                format!("/status/{part}/{}", key.replace('~', "~0").replace('/', "~1"))
            };
            let (hard, used) = (bytes(quota, &pointer("hard")), bytes(quota, &pointer("used")));
            if let (true, Some(hard), Some(used)) = (concerns, hard, used)
                && used >= hard
            {
                let what = format!(
                    "{key} is used up: {} of {}",
                    text(quota, &pointer("used")),
                    text(quota, &pointer("hard"))
                );
                out.push(
                    Step::stuck("quota", "quota", format!("resourcequota/{}", name(quota)))
                        .what(what)
                        .mend("raise the quota, or delete claims that nobody needs"),
                );
            }
        }
    }
}

fn pending(see: &Snapshot, claim: &Value, out: &mut Vec<Step>) {
    let object = format!("pvc/{}", name(claim));
    if let Some(wanted) = at(claim, "/spec/volumeName") {
        return wants(see, claim, wanted, out);
    }
    let class_name = match claim.pointer("/spec/storageClassName").and_then(Value::as_str) {
        Some(name) => name,
        None => {
            let default = see.classes.iter().find(|c| annotation(c, DEFAULT_CLASS) == Some("true"));
            let step = match default {
                Some(class) => Step::waiting("class", "class-none", &object).what(format!(
                    "it names no class; {} is the default, and kube-controller-manager writes it there",
                    name(class)
                )),
                None => Step::stuck("class", "class-none", &object)
                    .since(created(claim))
                    .what("it names no class, and no StorageClass is the default one")
                    .mend(format!("make the claim anew with storageClassName, or: kubectl annotate storageclass NAME {DEFAULT_CLASS}=true")),
            };
            return out.push(step);
        }
    };
    if class_name.is_empty() {
        return statics(see, claim, class_name, out);
    }
    let Some(class) = see.class(class_name) else {
        if see.volumes.iter().any(|v| text(v, "/spec/storageClassName") == class_name) {
            return statics(see, claim, class_name, out);
        }
        let known: Vec<_> = see.classes.iter().map(name).collect();
        return out.push(
            Step::stuck("class", "class-missing", format!("storageclass/{class_name}"))
                .since(created(claim))
                .what("the claim names it, and there is no such StorageClass")
                .mend(format!(
                    "make it, or make the claim anew with another; there are: {}",
                    listed(&known)
                )),
        );
    };
    let driver = text(class, "/provisioner");
    if driver == "kubernetes.io/no-provisioner" {
        return statics(see, claim, class_name, out);
    }
    let late = text(class, "/volumeBindingMode") == "WaitForFirstConsumer";
    let mode = if late { "WaitForFirstConsumer" } else { "Immediate" };
    out.push(Step::ok(
        "class",
        format!("storageclass/{class_name}"),
        format!("driver {driver}, {mode}"),
    ));
    if claim.pointer("/spec/selector").is_some_and(|s| !s.is_null()) {
        out.push(
            Step::stuck("claim", "selector", &object)
                .what("it has a selector: volumes that are made have no labels, so none is made for it")
                .mend("make the claim anew without selector"),
        );
    }
    places::driver(see, driver, out);
    places::topology(see, class, out);
    let chosen = annotation(claim, SELECTED_NODE);
    if let Some(node) = chosen {
        places::on_node(see, driver, node, out);
    }
    places::capacity(see, claim, class, chosen, out);
    secrets(see, claim, class, out);
    made_from(see, claim, out);
    attributes(see, claim, out);
    let user = see.users(name(claim)).next();
    if late && chosen.is_none() {
        match user {
            None => return out.push(
                Step::waiting("consumer", "waits-for-consumer", &object)
                    .since(created(claim))
                    .what(
                        "the class waits for a pod, and none uses the claim yet: that is right so",
                    )
                    .mend("make a pod that uses it; nothing else is needed"),
            ),
            Some(user) => pod::placing(see, user, out),
        }
        if out.iter().any(|step| step.link == "scheduling" || step.kind == "provisioning-failed") {
            return;
        }
    }
    provisioning(see, claim, driver, out);
}

/// A claim that names its volume.
fn wants(see: &Snapshot, claim: &Value, wanted: &str, out: &mut Vec<Step>) {
    let object = format!("pv/{wanted}");
    let Some(volume) = see.volume(wanted) else {
        return out.push(
            Step::stuck("volume", "volume-missing", object)
                .since(created(claim))
                .what("the claim wants it by name, and it is not there")
                .mend("make the PersistentVolume, or make the claim anew without volumeName"),
        );
    };
    let owner = (text(volume, "/spec/claimRef/namespace"), text(volume, "/spec/claimRef/name"));
    let uid = text(volume, "/spec/claimRef/uid");
    let ours = (see.namespace.as_str(), name(claim));
    let same = owner == ours && (uid.is_empty() || uid == text(claim, "/metadata/uid"));
    if owner != ("", "") && !same {
        return out.push(
            Step::stuck("volume", "volume-taken", object)
                .since(created(claim))
                .what(format!("the claim wants it, and it belongs to claim {}", full(owner.0, owner.1)))
                .mend("make the claim anew with another volume; of a claim that is gone: kubectl patch pv NAME --type json -p '[{\"op\":\"remove\",\"path\":\"/spec/claimRef\"}]'"),
        );
    }
    let less =
        bytes(volume, "/spec/capacity/storage") < bytes(claim, "/spec/resources/requests/storage");
    let class = text(volume, "/spec/storageClassName") != text(claim, "/spec/storageClassName");
    let modes = texts(volume, "/spec/accessModes");
    let mode = texts(claim, "/spec/accessModes").iter().any(|mode| !modes.contains(mode));
    let differs = [
        (less, "it is smaller than what is asked for"),
        (class, "it is of another class"),
        (mode, "it has not all access modes"),
    ];
    match differs.into_iter().find(|(differs, _)| *differs) {
        Some((_, why)) => out.push(
            Step::stuck("volume", "volume-unfit", object)
                .since(created(claim))
                .what(format!("the claim wants it by name, and {why}"))
                .mend("make the claim anew so that it fits the volume"),
        ),
        None => out.push(
            Step::waiting("volume", "binding", object)
                .since(created(claim))
                .what("it fits, and kube-controller-manager binds it next"),
        ),
    }
}

/// A claim for which nobody makes a volume.
fn statics(see: &Snapshot, claim: &Value, class: &str, out: &mut Vec<Step>) {
    let of_class: Vec<_> =
        see.volumes.iter().filter(|v| text(v, "/spec/storageClassName") == class).collect();
    let free: Vec<_> =
        of_class.iter().filter(|v| text(v, "/status/phase") == "Available").collect();
    let asked = bytes(claim, "/spec/resources/requests/storage");
    let fits = free.iter().any(|v| bytes(v, "/spec/capacity/storage") >= asked);
    let of =
        if class.is_empty() { "without a class".to_owned() } else { format!("of class {class}") };
    let object = format!("pvc/{}", name(claim));
    if fits {
        return out.push(Step::waiting("volume", "binding", object).since(created(claim)).what(
            format!("a PersistentVolume {of} fits: it is bound next, or once a pod uses the claim"),
        ));
    }
    let what = format!(
        "nobody makes volumes {of}, and of {} PersistentVolumes {of} none is free and large enough ({} are free)",
        of_class.len(),
        free.len()
    );
    out.push(
        Step::stuck("volume", "no-static-volume", object)
            .since(created(claim))
            .what(what)
            .mend("make a PersistentVolume that fits, or make the claim anew with a class whose driver makes volumes"),
    );
}

/// The Secrets of all calls: whether they are there. Their values are nobody's business.
fn secrets(see: &Snapshot, claim: &Value, class: &Value, out: &mut Vec<Step>) {
    for (of, found) in references(see, claim, class) {
        let object = format!("storageclass/{}", name(class));
        match found {
            Err(why) => out.push(
                Step::stuck("secrets", "secret-template", object)
                    .what(why)
                    .mend("delete the class and make it anew: its parameters cannot be changed"),
            ),
            Ok(key) => secret(see, &key, &format!("{} secret", of.word()), out),
        }
    }
}

/// A Secret that some call needs.
pub(super) fn secret(see: &Snapshot, key: &Key, what: &str, out: &mut Vec<Step>) {
    let object = format!("secret/{key}");
    match see.secrets.get(key) {
        None => out.push(Step::unknown("secrets", object, format!("the {what}: not looked at"))),
        Some(None) => out.push(
            Step::stuck("secrets", "secret-missing", object)
                .what(format!("it is named as the {what}, and there is none"))
                .mend(format!("kubectl -n {} create secret generic {} --from-literal=KEY=VALUE, with the keys that the driver wants", key.namespace, key.name)),
        ),
        Some(Some(keys)) if keys.is_empty() => out.push(
            Step::stuck("secrets", "secret-missing", object)
                .what(format!("it is the {what}, and has no keys"))
                .mend("put the keys into it that the driver wants"),
        ),
        Some(Some(keys)) => {
            out.push(Step::ok("secrets", object, format!("the {what}, with keys {}", keys.join(", "))));
        }
    }
}

/// The Secrets that a class names for a claim.
pub(super) fn references(
    see: &Snapshot,
    claim: &Value,
    class: &Value,
) -> Vec<(Use, Result<Key, String>)> {
    let map = |pointer: &str| -> BTreeMap<String, String> {
        let object = class.pointer(pointer).and_then(Value::as_object);
        let pairs = object.into_iter().flatten();
        pairs.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
    };
    let parameters = map("/parameters");
    let annotations = claim.pointer("/metadata/annotations").cloned().unwrap_or_default();
    let annotations: BTreeMap<String, String> =
        serde_json::from_value(annotations).unwrap_or_default();
    let volume = at(claim, "/spec/volumeName")
        .map_or_else(|| format!("pvc-{}", text(claim, "/metadata/uid")), str::to_owned);
    let names = Names {
        volume: &volume,
        namespace: &see.namespace,
        claim: name(claim),
        annotations: Some(&annotations),
    };
    let mut found = Vec::new();
    for of in Use::ALL {
        match secrets::resolve(&parameters, of, names) {
            Ok(None) => {}
            Ok(Some(secret)) => found.push((of, Ok(Key::new(secret.namespace, secret.name)))),
            Err(fault) => found.push((of, Err(fault.to_string()))),
        }
    }
    found
}

/// What it is made from.
fn made_from(see: &Snapshot, claim: &Value, out: &mut Vec<Step>) {
    let of = ["/spec/dataSource", "/spec/dataSourceRef"];
    let Some(of) = of.into_iter().find(|of| at(claim, &format!("{of}/name")).is_some()) else {
        return;
    };
    let (kind, from) = (text(claim, &format!("{of}/kind")), text(claim, &format!("{of}/name")));
    if at(claim, &format!("{of}/namespace")).is_some_and(|n| n != see.namespace) {
        return out.push(Step::unknown(
            "source",
            format!("{kind}/{from}"),
            "it is in another namespace",
        ));
    }
    match kind {
        "PersistentVolumeClaim" => {
            let object = format!("pvc/{from}");
            let missing = Step::stuck("source", "source-missing", &object).since(created(claim));
            match see.claim(from) {
                None => out.push(
                    missing
                        .what("the claim is a copy of it, and it is not there")
                        .mend("make the claim anew from something that is there"),
                ),
                Some(source) if text(source, "/status/phase") != "Bound" => out.push(
                    Step::stuck("source", "source-not-ready", object)
                        .since(created(source))
                        .what(format!(
                            "the claim is a copy of it, and it is {}",
                            text(source, "/status/phase")
                        ))
                        .mend(format!(
                            "look why: kubectl larder why pvc/{from} -n {}",
                            see.namespace
                        )),
                ),
                Some(_) => out.push(Step::ok("source", object, "the claim is a copy of it")),
            }
        }
        "VolumeSnapshot" => {
            let object = format!("volumesnapshot/{from}");
            let found = see.snapshots.iter().find(|s| name(s) == from);
            out.push(match found {
                None if see.unseen.iter().any(|u| u.contains("volumesnapshots")) => {
                    Step::unknown("source", object, "snapshots could not be looked at")
                }
                None => Step::stuck("source", "source-missing", object)
                    .since(created(claim))
                    .what("the claim is restored from it, and it is not there")
                    .mend("make the claim anew from a snapshot that is there"),
                Some(s) if s.pointer("/status/readyToUse") == Some(&Value::Bool(true)) => {
                    Step::ok("source", object, "it is ready to use")
                }
                Some(s) => Step::stuck("source", "source-not-ready", object)
                    .since(created(s))
                    .what(match at(s, "/status/error/message") {
                        Some(why) => format!("it is not ready to use: {why}"),
                        None => "it is not ready to use".to_owned(),
                    })
                    .mend(format!("kubectl -n {} describe volumesnapshot {from}", see.namespace)),
            });
        }
        _ => out.push(Step::unknown(
            "source",
            format!("{kind}/{from}"),
            "a populator fills the volume; see what it says",
        )),
    }
}

fn attributes(see: &Snapshot, claim: &Value, out: &mut Vec<Step>) {
    let Some(class) = at(claim, "/spec/volumeAttributesClassName") else { return };
    let object = format!("volumeattributesclass/{class}");
    if see.attributes.iter().any(|c| name(c) == class) {
        return out.push(Step::ok("attributes", object, "it is there"));
    }
    out.push(
        Step::stuck("attributes", "attributes-class-missing", object)
            .since(created(claim))
            .what("the claim names it, and there is no such VolumeAttributesClass")
            .mend("make it, or name another in the claim"),
    );
}

/// What the provisioner says, or that it says nothing.
fn provisioning(see: &Snapshot, claim: &Value, driver: &str, out: &mut Vec<Step>) {
    let object = format!("pvc/{}", name(claim));
    if let Some(failed) = see.event("PersistentVolumeClaim", name(claim), &["ProvisioningFailed"]) {
        let said = text(failed, "/message");
        return out.push(
            classified("provisioning", "provisioning-failed", &object, said).since(first(failed)),
        );
    }
    let told = annotation(claim, PROVISIONER).or_else(|| annotation(claim, PROVISIONER_BETA));
    let age = see.age(created(claim));
    out.push(match told {
        None if age > SILENCE => Step::stuck("provisioning", "not-offered", &object)
            .since(created(claim))
            .what("kube-controller-manager has told no provisioner of it")
            .mend("look whether kube-controller-manager works: kubectl -n kube-system get pods,leases"),
        None => Step::waiting("provisioning", "not-offered", &object)
            .since(created(claim))
            .what("kube-controller-manager tells the provisioner of it next"),
        Some(_) if age > SILENCE => Step::stuck("provisioning", "nobody-provisions", &object)
            .since(created(claim))
            .what(format!("the provisioner of driver {driver} was told of it, and has said nothing"))
            .mend("look whether it runs, and at its log; Larder's: kubectl get pods -A -l app.kubernetes.io/name=larder"),
        Some(_) => Step::waiting("provisioning", "provisioning", &object)
            .since(created(claim))
            .what(format!("driver {driver} is at work")),
    });
}

/// A failure in somebody's words, by what it is about.
pub(super) fn classified(link: &'static str, kind: &'static str, object: &str, said: &str) -> Step {
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let step = |kind| Step::stuck(link, kind, object).what(said);
    if has(&["is forbidden"]) && has(&["cannot "]) {
        let rule =
            said.find("grant the ServiceAccount").map(|from| said[from..].trim_end_matches(')'));
        return step("rbac").mend(rule.unwrap_or("grant its ServiceAccount what the message names; Larder's chart grants what `controllers` switches on"));
    }
    if has(&[
        "ResourceExhausted",
        "RESOURCE_EXHAUSTED",
        "no space",
        "not enough space",
        "free storage",
    ]) {
        return step("no-capacity").mend("make room in the pool, or ask for less");
    }
    if has(&["secret", "Secret"]) && has(&["not found", "there is none", "is not there"]) {
        return step("secret-missing").mend("make the Secret that the message names");
    }
    if has(&["not found in the list of registered CSI drivers"]) {
        return step("driver-not-on-node").mend("look why the driver is not registered: kubectl get pods -A -o wide -l app.kubernetes.io/name=larder");
    }
    let mend = match said.find("(hint: ") {
        Some(from) => said[from + "(hint: ".len()..].trim_end_matches(')').to_owned(),
        None => "mend what the message says; it is tried again by itself".to_owned(),
    };
    step(kind).mend(mend)
}

/// Conditions of a claim, by what they mean for growth.
pub(super) fn failed_condition(claim: &Value) -> Option<&Value> {
    let kinds = ["ControllerResizeError", "NodeResizeError"];
    kinds
        .into_iter()
        .filter_map(|kind| condition(claim, kind))
        .find(|c| text(c, "/status") == "True")
}

/// Conditions that a person may want to know, as `get volumes` shows them.
pub(super) fn conditions(claim: &Value) -> Vec<String> {
    let all = list(claim, "/status/conditions").iter();
    all.filter(|c| text(c, "/status") == "True").map(|c| text(c, "/type").to_owned()).collect()
}
