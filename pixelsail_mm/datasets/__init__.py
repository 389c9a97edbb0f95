"""Datasets: one reader per annotation format, combinations of readers, transforms, samplers."""

from pixelsail_mm.datasets.base import PixelDataset
from pixelsail_mm.datasets.mixing.merged import MergedDataset
from pixelsail_mm.datasets.mixing.mixture import MixtureDataset
from pixelsail_mm.datasets.readers.coco_panoptic import COCOPanopticDataset, COCOSemanticDataset
from pixelsail_mm.datasets.readers.coco_region_class import COCORegionClassDataset
from pixelsail_mm.datasets.readers.gcg_evaluation import GCGEvaluationDataset
from pixelsail_mm.datasets.readers.gcg_formats import (
    FlickrGCGDataset,
    GranDfDataset,
    OpenPSGGCGDataset,
    RefCOCOgGCGDataset,
)
from pixelsail_mm.datasets.readers.grefcoco import GRefCOCODataset
from pixelsail_mm.datasets.readers.image_caption import ImageCaptionDataset
from pixelsail_mm.datasets.readers.llava import LLaVADataset
from pixelsail_mm.datasets.readers.muse import MUSEDataset
from pixelsail_mm.datasets.readers.osprey import OspreyDataset
from pixelsail_mm.datasets.readers.osprey_description import OspreyDescriptionDataset
from pixelsail_mm.datasets.readers.perbench import (
    PerBenchCaptionDataset,
    PerBenchMCQDataset,
    PerBenchVRESDataset,
)
from pixelsail_mm.datasets.readers.pix2cap import Pix2CapRegionDataset, Pix2CapSegDataset
from pixelsail_mm.datasets.readers.pixel_chat import PixelChatDataset
from pixelsail_mm.datasets.readers.reason_seg import ReasonSegDataset
from pixelsail_mm.datasets.readers.refcoco import RefCOCODataset
from pixelsail_mm.datasets.readers.refcocog_region import RefCOCOgRegionDataset
from pixelsail_mm.datasets.readers.sam_region import SAMRegionDataset
from pixelsail_mm.errors import AnnotationError, BadSampleError

__all__ = [
    'AnnotationError',
    'BadSampleError',
    'COCOPanopticDataset',
    'COCORegionClassDataset',
    'COCOSemanticDataset',
    'FlickrGCGDataset',
    'GCGEvaluationDataset',
    'GRefCOCODataset',
    'GranDfDataset',
    'ImageCaptionDataset',
    'LLaVADataset',
    'MUSEDataset',
    'MergedDataset',
    'MixtureDataset',
    'OpenPSGGCGDataset',
    'OspreyDataset',
    'OspreyDescriptionDataset',
    'PerBenchCaptionDataset',
    'PerBenchMCQDataset',
    'PerBenchVRESDataset',
    'Pix2CapRegionDataset',
    'Pix2CapSegDataset',
    'PixelChatDataset',
    'PixelDataset',
    'ReasonSegDataset',
    'RefCOCODataset',
    'RefCOCOgGCGDataset',
    'RefCOCOgRegionDataset',
    'SAMRegionDataset',
]
