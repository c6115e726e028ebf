// The service's answers, and the requests for them; see its OpenAPI document.

import { call, callRaw } from "./shared";

export type Triple = [number, number, number];
export type State = "received" | "waiting" | "working" | "done" | "failed";

export interface Study {
  study: string;
  patient_name: string;
  patient_id: string;
  birth_date: string;
  study_date: string;
  description: string;
  modality: string;
  accession: string;
  instances: number;
  received: string;
  state: State;
  jobs: { kind: string; state: string; attempts: number; reason: string }[];
  images: number;
  segmentations: number;
}

export interface Other {
  study: string;
  study_date: string;
  description: string;
  modality: string;
}

export interface Image {
  image: string;
  study: string | null;
  name: string;
  modality: string;
  description: string;
  shape: Triple;
  spacing_mm: Triple;
  units: string;
  window: [string, number, number][];
}

export type OpenedStudy = Omit<Study, "images"> & { images: Image[]; others: Other[] };

export interface Segmentation {
  segmentation: string;
  image: string;
  kind: "model" | "reader" | "consensus" | "final";
  author: string;
  state: "draft" | "submitted" | "final";
  version: number;
  labels: Record<string, string>;
  product_class: string;
  intended_use?: string; // as its model was declared
  made: string;
  may: string[];
  confirmed: null | { by: string; at: string };
  needs_confirmation: boolean;
}

export interface Place {
  label: number;
  name: string;
  voxel: Triple;
  world_mm: Triple;
}

export interface Volume {
  ml: number;
  low_ml: number;
  high_ml: number;
}

export interface Lesion {
  label: number;
  number: number;
  volume: Volume;
  long_axis_mm: number;
  short_axis_mm: number;
  centroid_mm: Triple; // LPS
}

export interface Structure {
  label: number;
  name: string;
  count: number;
  volume: Volume;
  lesions: Lesion[];
}

export interface Finding {
  text: string;
  confidence: number;
}

export interface Figures {
  structures: Structure[];
  findings: Finding[];
  confirmed_by: string | null;
}

export interface Project {
  project: string;
  name: string;
  labels: Record<string, string>;
  images: number;
  readers: string[];
  target_kappa: number;
  done: number;
  mine: boolean;
}

export interface ProjectImage {
  image: string;
  name: string;
  mine: null | "draft" | "submitted";
  version: number | string | null;
  submitted?: number;
  final?: boolean;
}

export type OpenedProject = Omit<Project, "images"> & { images: ProjectImage[] };

export interface Agreement {
  readers: string[];
  cohen: { a: string; b: string; kappa: number | null }[];
  fleiss: number | null;
  dice: Record<string, (number | null)[][]>;
  staple: { reader: string; label: string; sensitivity: number | null; specificity: number | null }[];
  target_kappa: number;
  reached: boolean;
  where?: string;
}

export interface Listed {
  studies: Study[];
  next: string | null;
  counts: Record<State, number>;
}

export const studies = (
  search: string, state: State | null, after: string | null,
): Promise<Listed> => call("POST", "/api/studies", { search, state, after, limit: 50 });
export const study = (id: string): Promise<OpenedStudy> => call("GET", `/api/studies/${id}`);
export const again = (id: string): Promise<{ queued: number }> =>
  call("POST", `/api/studies/${id}/again`, {});
export const image = (id: string): Promise<Image> => call("GET", `/api/images/${id}`);
export const segmentations = async (id: string): Promise<Segmentation[]> =>
  (await call("GET", `/api/images/${id}/segmentations`)).segmentations;
export const places = async (id: string): Promise<Place[]> =>
  (await call("GET", `/api/segmentations/${id}/places`)).places;
export const figures = (id: string): Promise<Figures> =>
  call("GET", `/api/segmentations/${id}/measures`);
export const confirm = (id: string, version: number): Promise<Segmentation> =>
  call("POST", `/api/segmentations/${id}/confirm`, { version });

export const projects = async (): Promise<Project[]> =>
  (await call("GET", "/api/projects")).projects;
export const project = (id: string): Promise<OpenedProject> => call("GET", `/api/projects/${id}`);
export const makeProject = (about: {
  name: string; labels: Record<string, string>; images: string[]; readers: string[];
  target_kappa: number;
}): Promise<Project> => call("POST", "/api/projects", about);
// `look`: a model may look at more images first, so that the next ones are told in a better order.
export const next = async (id: string, look = false): Promise<string | null> =>
  (await call("GET", `/api/projects/${id}/next${look ? "?look=true" : ""}`)).image;

const inProject = (project: string, image: string) => `/api/projects/${project}/images/${image}`;
export const proposals = async (project: string, image: string): Promise<Segmentation[]> =>
  (await call("GET", `${inProject(project, image)}/proposals`)).segmentations;
export const agreement = (project: string, image: string): Promise<Agreement> =>
  call("GET", `${inProject(project, image)}/agreement`);
export const consensus = (project: string, image: string): Promise<Segmentation> =>
  call("POST", `${inProject(project, image)}/consensus`, {});

export const reopen = (project: string, image: string, reader: string): Promise<unknown> =>
  call("POST", `${inProject(project, image)}/reopen`, { reader });

const GZIP = { "Content-Type": "application/gzip" };

export const volume = (id: string): Promise<Response> =>
  callRaw("GET", `/api/images/${id}/volume.nii.gz`);
export const mask = (id: string): Promise<Response> =>
  callRaw("GET", `/api/segmentations/${id}/mask.nii.gz`);
export const annotation = (project: string, image: string): Promise<Response> =>
  callRaw("GET", `${inProject(project, image)}/annotation`);

// Keeps a drawing, over that version alone which it was made from; returns the new version.
export async function saveAnnotation(
  project: string, image: string, content: Blob, state: "draft" | "submitted",
  version: string | null,
): Promise<string> {
  const answer = await callRaw(
    "PUT", `${inProject(project, image)}/annotation?state=${state}`, content,
    version === null ? GZIP : { ...GZIP, "If-Match": version },
  );
  const tag = answer.headers.get("ETag");
  return tag ?? String((await answer.json()).version);
}

export async function saveFinal(
  project: string, image: string, content: Blob,
): Promise<Segmentation> {
  const answer = await callRaw("PUT", `${inProject(project, image)}/final`, content, GZIP);
  return answer.json();
}

export async function click(
  image: string, points: { voxel: Triple; inside: boolean }[],
): Promise<Response> {
  return callRaw(
    "POST", `/api/images/${image}/click`, JSON.stringify({ points, radius_mm: 40 }),
    { "Content-Type": "application/json" },
  );
}
